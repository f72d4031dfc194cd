"""Records to tables and pages: Markdown, LaTeX, CSV, and self-contained HTML. Never torch."""
