"""What every room stands on: checks, errors, status, printing, timing, records."""
