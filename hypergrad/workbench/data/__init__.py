"""Real data as float64 NumPy arrays: photographs, disparity rows, speech, and custom data.

Training and held-out samples never share a photograph, a band of rows, a clip or a file. Nothing
is downloaded, and every draw comes from the seed given.
"""

from hypergrad._foundation.quality import psnr as psnr
from hypergrad._foundation.quality import snr as snr
from hypergrad.workbench.data._files import AUDIO as AUDIO
from hypergrad.workbench.data._files import IMAGES as IMAGES
from hypergrad.workbench.data.disparity import DISPARITY_PEAK as DISPARITY_PEAK
from hypergrad.workbench.data.disparity import DISPARITY_ROWS as DISPARITY_ROWS
from hypergrad.workbench.data.disparity import MEASURED as MEASURED
from hypergrad.workbench.data.disparity import disparity_rows as disparity_rows
from hypergrad.workbench.data.own import ImageFolder as ImageFolder
from hypergrad.workbench.data.own import load_own as load_own
from hypergrad.workbench.data.photographs import PHOTOGRAPHS_CHOOSE as PHOTOGRAPHS_CHOOSE
from hypergrad.workbench.data.photographs import PHOTOGRAPHS_HELD_OUT as PHOTOGRAPHS_HELD_OUT
from hypergrad.workbench.data.photographs import PHOTOGRAPHS_LARGE as PHOTOGRAPHS_LARGE
from hypergrad.workbench.data.photographs import PHOTOGRAPHS_TRAIN as PHOTOGRAPHS_TRAIN
from hypergrad.workbench.data.photographs import all_patches as all_patches
from hypergrad.workbench.data.photographs import assemble as assemble
from hypergrad.workbench.data.photographs import noisy_patches as noisy_patches
from hypergrad.workbench.data.photographs import photograph as photograph
from hypergrad.workbench.data.photographs import random_patches as random_patches
from hypergrad.workbench.data.samples import Floats as Floats
from hypergrad.workbench.data.samples import Samples as Samples
from hypergrad.workbench.data.samples import Split as Split
from hypergrad.workbench.data.speech import ASTERISK as ASTERISK
from hypergrad.workbench.data.speech import NOT_SPEECH as NOT_SPEECH
from hypergrad.workbench.data.speech import QUIET as QUIET
from hypergrad.workbench.data.speech import audio_files as audio_files
from hypergrad.workbench.data.speech import quantise as quantise
from hypergrad.workbench.data.speech import speech_frames as speech_frames
