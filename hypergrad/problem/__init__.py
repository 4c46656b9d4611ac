"""The lower-level problem: its functions, its operator, and both together."""
