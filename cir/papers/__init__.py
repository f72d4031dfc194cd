"""Tables of papers as data: what was reported and where, beside the records of ours, with a verdict per cell."""
