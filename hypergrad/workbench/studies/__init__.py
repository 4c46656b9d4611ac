"""The main job: strategies side by side on patches of photographs, from data to pictures.

Stages, each a room: samples; the untrained operators and their baselines, tuned on training data;
learning, after all strategies on one batch; evaluation of every operator at L and at a converged
lower level; tables and pictures.
"""

from hypergrad.workbench.studies.settings import PRESETS as PRESETS
from hypergrad.workbench.studies.settings import ImageStudy as ImageStudy
from hypergrad.workbench.studies.stages import run_image_study as run_image_study
