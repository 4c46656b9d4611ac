"""Records and arrays as figures: matplotlib objects without pyplot, a display or global settings.

One table of styles keyed by strategy; colours differ in lightness too, so that a figure survives a
grey printer. What is given is drawn as it is; a record that cannot be drawn is named.
"""

from hypergrad.plotting._checks import Arrays as Arrays
from hypergrad.plotting._checks import Records as Records
from hypergrad.plotting.curves import plot_comparison as plot_comparison
from hypergrad.plotting.curves import plot_loss_curves as plot_loss_curves
from hypergrad.plotting.parts import Numbers as Numbers
from hypergrad.plotting.parts import draw_curve as draw_curve
from hypergrad.plotting.parts import draw_levels as draw_levels
from hypergrad.plotting.parts import label_curves as label_curves
from hypergrad.plotting.parts import label_panels as label_panels
from hypergrad.plotting.parts import label_points as label_points
from hypergrad.plotting.parts import legend_below as legend_below
from hypergrad.plotting.parts import new_figure as new_figure
from hypergrad.plotting.parts import share_labels as share_labels
from hypergrad.plotting.parts import tidy as tidy
from hypergrad.plotting.pictures import plot_operator as plot_operator
from hypergrad.plotting.pictures import plot_patches as plot_patches
from hypergrad.plotting.pictures import plot_photograph as plot_photograph
from hypergrad.plotting.saving import save_figure as save_figure
from hypergrad.plotting.styles import DPI as DPI
from hypergrad.plotting.styles import FILLS as FILLS
from hypergrad.plotting.styles import LETTER as LETTER
from hypergrad.plotting.styles import SMALL as SMALL
from hypergrad.plotting.styles import STYLES as STYLES
from hypergrad.plotting.styles import TEXT as TEXT
from hypergrad.plotting.styles import TINY as TINY
from hypergrad.plotting.styles import WIDTH as WIDTH
from hypergrad.plotting.styles import Style as Style
from hypergrad.plotting.styles import style_of as style_of
from hypergrad.plotting.styles import styles_of as styles_of
