"""One file per command, with the imports it needs inside; `cir.cli` says what they take."""
