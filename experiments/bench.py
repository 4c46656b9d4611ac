"""The benchmark as an experiment: `hypergrad bench`, with stored records.

python experiments/bench.py [--quick] [--only floors] [--out results/bench]
"""

import jax

from hypergrad.workbench.benchmark import Benchmark, cells, report
from hypergrad.workbench.sweep import main

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)  # sections say themselves where they want float32
    main("bench", Benchmark, cells, report)
