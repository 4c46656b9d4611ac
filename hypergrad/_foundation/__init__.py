"""The base of every room: checks, errors, status, printing, timing, records."""
