"""Every figure, and the table of the posters' statements, from the stored records.

python paper_figs/all.py [--records experiments/records] [--out paper_figs/drawn] [--store]

`--store` also replaces the pictures that are kept in the repository, `paper_figs/*.webp`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

import statements
from _common import DRAWN, STORED, conclude, store, why_not

from hypergrad._foundation.records import write_text
from hypergrad.plotting import save_figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, default=STORED)
    parser.add_argument("--out", type=Path, default=DRAWN)
    parser.add_argument("--store", action="store_true", help="also replace paper_figs/*.webp")
    options = parser.parse_args()
    started, failed = time.perf_counter(), 0
    for path in sorted(Path(__file__).parent.glob("fig[0-9]*.py")):
        module = importlib.import_module(path.stem)
        for name, draw in module.FIGURES.items():
            folder = options.records / module.EXPERIMENT
            try:
                figure = conclude(draw(folder), name, folder)
                print(*save_figure(figure, options.out / name))
                if options.store:
                    print(store(figure, path.with_name(f"{name}.webp")))
            except Exception as error:  # no records: the other figures are drawn all the same
                print(f"{name}: {why_not(error, folder)}", file=sys.stderr)
                failed += 1
    try:
        write_text(options.out / "statements.md", statements.document(options.records))
        print(options.out / "statements.md")
    except OSError as error:
        print(f"statements: {why_not(error, options.records)}", file=sys.stderr)
        failed += 1
    print(f"{time.perf_counter() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
