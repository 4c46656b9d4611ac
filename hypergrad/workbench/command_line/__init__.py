"""The command line: `hypergrad` and `python -m hypergrad`."""
