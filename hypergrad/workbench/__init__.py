"""Files, screens and studies: the command line, the benchmark, data and sweeps."""
