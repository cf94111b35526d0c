"""The report on runs: one self-contained page."""
