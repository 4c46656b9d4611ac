"""Run sweeps: the independent cells of an experiment, each written whole as soon as it is finished.

    out/config.json          what the run is; another run is refused the folder
    out/environment.json     where it ran
    out/cells/<name>.json    key, records and checksum of a finished cell
    out/cells/<name>.npz     its arrays, if it has any
    out/checkpoints/<name>/  of a cell at work; removed when the cell is finished
    out/files/<name>/        what else a cell leaves for a person to look at or listen to
    out/records.jsonl        all records in the order of the cells, once the last one is finished

Started again after an interruption, a sweep reads finished cells from disk and continues the others
from their checkpoints. A cell that cannot be read is reported as damaged and computed again.

Cells run one after another in this process, or on workers of Dask. The first is the default and
needs no Dask: experiments that measure time must have the machine to themselves, and a cell can
show its own progress. This process alone writes cells, so a worker that is killed costs only the
cell it was computing, which Dask gives to another one.
"""

from hypergrad.workbench.sweep.cells import Cell as Cell
from hypergrad.workbench.sweep.cells import Record as Record
from hypergrad.workbench.sweep.cells import Result as Result
from hypergrad.workbench.sweep.cells import Workspace as Workspace
from hypergrad.workbench.sweep.experiment import AbstractSettings as AbstractSettings
from hypergrad.workbench.sweep.experiment import Options as Options
from hypergrad.workbench.sweep.experiment import main as main
from hypergrad.workbench.sweep.experiment import run_experiment as run_experiment
from hypergrad.workbench.sweep.experiment import run_of as run_of
from hypergrad.workbench.sweep.finished import store as store
from hypergrad.workbench.sweep.running import run_sweep as run_sweep
