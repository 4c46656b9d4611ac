"""Records and arrays as figures: matplotlib objects without pyplot, a display or global settings.

One table of styles keyed by strategy; colours differ in lightness too, so that a figure survives a
grey printer. What is given is drawn as it is; a record that cannot be drawn is named.
"""

from __future__ import annotations

import io
import math
import textwrap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import FillStyleType, LineStyleType
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from hypergrad.statistics import Interval

Records = Sequence[Mapping[str, Any]]
Arrays = Mapping[str, ArrayLike]
Numbers = Mapping[str, float]
Floats = NDArray[np.float64]

WIDTH, DPI = 10.0, 150  # inches, the most that a figure takes; dots per inch of a PNG
TEXT, SMALL, TINY = 9.0, 8.0, 7.0  # font sizes in points
LETTER = 0.6 / 72  # inches, the width of a letter on average, for each point of its size
FILLS: tuple[FillStyleType, ...] = ("full", "none", "left", "top", "right", "bottom")


@dataclass(frozen=True)
class Style:
    """How a strategy is drawn; `fill` is matplotlib's `fillstyle` of the marker."""

    color: str
    linestyle: LineStyleType
    marker: str
    fill: FillStyleType = "full"


# The lightness L* of any two strategies differs by 7 or more, and by 20 among the first four, which
# are seen together most often. Baselines are levels rather than curves: greys.
STYLES: dict[str, Style] = {
    "full": Style("#000000", "solid", "o"),
    "ergodic": Style("#f0a800", (0, (6, 1.5, 1, 1.5)), "^"),
    "truncation": Style("#0080c8", (0, (1.2, 1.2)), "s"),
    "limit": Style("#821800", (0, (5, 3)), "D"),
    "exact": Style("#4a1570", (0, (10, 2)), "*"),
    "jaxopt": Style("#006b4c", (0, (3, 1.5)), "P"),
    "optimistix": Style("#d37cae", (0, (3, 1.5, 1, 1.5, 1, 1.5)), "X"),
    "piggyback": Style("#1a1340", (0, (8, 1.5, 3, 1.5)), "v"),
    "truth": Style("#0d0d0d", (0, (20, 1)), "8"),
    "reference": Style("#2b2b2b", (0, (12, 2)), "h"),
    "identity": Style("#484848", (0, (1, 2)), "<"),
    "shrinkage": Style("#666666", (0, (4, 2)), ">"),
    "untrained": Style("#858585", (0, (7, 2, 1, 2)), "p"),
    "dct": Style("#a3a3a3", (0, (2, 1)), "d"),
    "differences": Style("#bfbfbf", (0, (9, 2, 1, 2, 1, 2)), "H"),
}


def style_of(label: str) -> Style:
    """The style of a label such as `truncation:k=5`: the name before the colon decides.

    A name that is not in `STYLES` gets a style from its checksum, the same in every process.

    >>> style_of("truncation:k=5") == STYLES["truncation"]
    True
    >>> style_of("mine") == style_of("mine:rate=2") != style_of("full")
    True
    """
    name = label.partition(":")[0]
    if name in STYLES:
        return STYLES[name]
    rest, hue = divmod(zlib.crc32(name.encode()), 24)
    rest, dash = divmod(rest, 5)
    red, green, blue = hsv_to_rgb((hue / 24, 0.8, 0.6))
    return Style(to_hex((red, green, blue)), (0, (dash + 2.5, 1, 1, 1)), "<>pdh8"[rest % 6])


def styles_of(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each label of one plot, in the order given, all different.

    Labels that share a style (options of one strategy) differ in the fill of the marker and in
    lightness: from the first to the last, dark colours grow lighter and light ones darker.

    >>> styles = styles_of(["full", "truncation:k=1", "truncation:k=5"])
    >>> [style.fill for style in styles.values()]
    ['full', 'full', 'none']
    """
    labels = list(dict.fromkeys(labels))
    bases, styles = [style_of(label) for label in labels], {}
    for i, (label, base) in enumerate(zip(labels, bases, strict=True)):
        rank, last = bases[:i].count(base), max(1, bases.count(base) - 1)
        rgb = np.array(to_rgb(base.color))
        goal = 1.0 if rgb @ (0.21, 0.72, 0.07) < 0.5 else 0.0  # white or black
        red, green, blue = rgb + 0.45 * rank / last * (goal - rgb)
        color = to_hex((red, green, blue))
        styles[label] = replace(base, color=color, fill=FILLS[rank % len(FILLS)])
    return styles


def plot_comparison(records: Records) -> Figure:
    """Relative error of the hypergradient against its time, both logarithmic: a marker a strategy.

    **Arguments**: `records` of `strategy`, `relative_error` and `milliseconds`, as `compare` gives
    them. One with an `error`, or without positive numbers to draw, is named above the axes.

    **Errors**: a `ValueError` where nothing is left to draw.
    """
    _check_records(records, "strategy")
    pairs = [(record.get("milliseconds"), record.get("relative_error")) for record in records]
    points = np.array(pairs, float)  # None becomes NaN
    failed = np.array([record.get("error") is not None for record in records])
    good = np.all((points > 0) & (points < np.inf), axis=1) & ~failed
    rule = "a record must have positive milliseconds and relative_error, and no error"
    _require(bool(good.any()), f"{rule}; got none such among {len(good)}: look at their errors")
    labels = np.array([record["strategy"] for record in records])
    figure = new_figure(5.6, 3.9)
    axes = figure.add_subplot(xscale="log", yscale="log")
    for label, style in styles_of(labels.tolist()).items():
        if (mine := good & (labels == label)).any():
            # With translucent faces, two markers at one place are both seen.
            look = _marker(style, 7.5, alpha=0.65) | {"linestyle": "none", "zorder": 3}
            axes.plot(*points[mine].T, label=label, **look)
    for axis, values in zip((axes.xaxis, axes.yaxis), np.log10(points[good]).T, strict=True):
        middle, half = (values.max() + values.min()) / 2, max(0.56 * np.ptp(values), 0.5)
        low, high = 10 ** (middle - half), 10 ** (middle + half)  # a decade at least: two ticks
        axes.set(**{f"{axis.axis_name}lim": (low, high)})
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if half < 1 else (1,)))
        axis.set_minor_formatter(ticker.NullFormatter())
        plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
        powers = ticker.LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf))
        axis.set_major_formatter(plain if low >= 1e-3 and high < 1e5 else powers)
    left_out = ", ".join(dict.fromkeys(labels[~good].tolist()))
    if left_out:
        axes.set_title(textwrap.fill(f"not drawn: {left_out}", 70), fontsize=SMALL)
    tidy(axes, "time per hypergradient (ms)", "relative error of the hypergradient")
    legend_below(figure, axes)
    return figure


def plot_loss_curves(
    records: Records,
    *,
    x: Literal["epoch", "seconds"] = "epoch",
    baselines: Numbers | None = None,
    loss: str = "½‖x − x†‖² per sample",
) -> Figure:
    """Training loss (left) and held-out loss (right) on one scale, a curve for each strategy.

    **Arguments**: `records` of `strategy`, `epoch`, `seconds`, `train_loss` and `validation_loss`
    (None: not drawn); `x`: what the losses are drawn against; `baselines`: held-out losses by name,
    drawn as labelled levels; `loss`, in words. The scale is logarithmic where losses differ by a
    factor of 10.

    **Errors**: a `ValueError` for no records, another `x`, two records of one strategy and epoch,
    or a baseline that is not finite.
    """
    names = {"epoch": "epoch", "seconds": "training time (s)"}
    _require(x in names, f"x must be one of {', '.join(names)}; got {x!r}: choose one")
    _check_records(records, "strategy", "epoch", x, "train_loss", "validation_loss")
    once = len({(record["strategy"], record["epoch"]) for record in records}) == len(records)
    rule = "records must have each epoch of a strategy once; got one twice"
    _require(once, f"{rule}: average seeds, or label them as strategies")
    levels = dict(baselines or {})
    finite = all(math.isfinite(level) for level in levels.values())
    _require(finite, f"baselines must be finite; got {levels}: leave out what is not")
    figure = new_figure(9.4, 3.9)
    panels: list[Axes] = list(figure.subplots(1, 2, sharex=True, sharey=True))
    styles, losses = styles_of(record["strategy"] for record in records), [*levels.values()]
    for panel, column in zip(panels, ("train_loss", "validation_loss"), strict=True):
        for i, (label, style) in enumerate(styles.items()):
            run = [record for record in records if record["strategy"] == label]
            run.sort(key=lambda record: record["epoch"])
            drawn = np.array([record[column] for record in run], float)  # None becomes NaN
            losses += drawn[np.isfinite(drawn)].tolist()
            # Curves that coincide are told apart by width, and by markers at different places.
            every, width = max(1, len(run) // 8), 2.8 - 1.4 * i / max(1, len(styles) - 1)
            look = _marker(style, 5.5) | {"linestyle": style.linestyle, "linewidth": width}
            look["markevery"] = (every * i // len(styles), every)
            panel.plot([record[x] for record in run], drawn, label=label, **look)
        tidy(panel, names[x])
    panels[0].set_ylabel(f"loss, {loss}", fontsize=TEXT)
    panels[0].set_title("training", fontsize=TEXT)
    nothing = all(record["validation_loss"] is None for record in records)
    panels[1].set_title("held-out (none recorded)" if nothing else "held-out", fontsize=TEXT)
    if losses and 0 < 10 * min(losses) <= max(losses):
        panels[0].set_yscale("log")
    if x == "epoch":
        panels[0].xaxis.set_major_locator(ticker.MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    draw_levels(panels[1], levels)
    legend_below(figure, panels[0])
    return figure


def draw_levels(axes: Axes, levels: Numbers) -> None:
    """Thin lines with labels right of the axes, moved apart where they would touch."""
    names = sorted(levels, key=lambda name: levels[name])
    for name in names:
        style = style_of(name)
        axes.axhline(levels[name], color=style.color, linestyle=style.linestyle, linewidth=1)
    axes.get_ylim()  # limits are lazy: the next line needs them settled
    to_axes, pitch = axes.transScale + axes.transLimits, 0.055  # of the height: a line of text
    heights = [to_axes.transform((1.0, levels[name]))[1] for name in names]
    for i in range(1, len(names)):
        heights[i] = max(heights[i], heights[i - 1] + pitch)
    heights.append(1 + pitch)
    for i in reversed(range(len(names))):
        heights[i] = min(heights[i], heights[i + 1] - pitch)
        line = {"arrowstyle": "-", "color": style_of(names[i]).color, "relpos": (0, 0.5)}
        look = {"va": "center", "fontsize": SMALL, "arrowprops": line | {"shrinkA": 1, "lw": 0.6}}
        ends = (1, levels[names[i]]), (1.06, heights[i]), axes.get_yaxis_transform()
        axes.annotate(names[i], *ends, "axes fraction", **look)


def plot_operator(
    K: ArrayLike,
    shape: tuple[int, int],
    *,
    title: str,
    use: ArrayLike | None = None,
    columns: int = 16,
) -> Figure:
    """The rows of an operator as small pictures on one colour scale, symmetric about zero.

    **Arguments**: `K` `(m, n)`; `shape` `(h, w)` with `h w = n`, for signals `(1, n)`; `use`
    `(m,)`, such as the mean of `|K x|` over data: rows are then sorted by it, the largest first,
    line by line; `columns`: pictures in a line.

    **Errors**: a `ValueError` for other shapes, no rows, numbers that are not finite.
    """
    (K,) = _arrays("K", {"K": K}, shape).values()
    m, (h, w) = len(K), shape
    _require(columns >= 1, f"columns must be at least 1; got {columns}: pass a positive number")
    if use is not None:
        use = np.asarray(use, float)
        ok = use.shape == (m,) and bool(np.isfinite(use).all())
        _require(ok, f"use must be a finite number for each of the {m} rows; got {use.shape}")
        K = K[np.argsort(-use, kind="stable")]
    columns, gap = min(columns, m), min(h, w, 2) - 1  # an entry apart; rows of signals touch
    lines = math.ceil(m / columns)
    mosaic = np.full((lines * (h + gap) - gap, columns * (w + gap) - gap), np.nan)
    for i, row in enumerate(K):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        mosaic[top : top + h, left : left + w] = row.reshape(h, w)
    ratio = mosaic.shape[0] / mosaic.shape[1]
    width = min(7.5, max(2.5, 0.7 * columns), 9 / ratio)
    figure = new_figure(max(width, 3) + 1.2, width * ratio + 0.9, "compressed")
    axes = figure.add_subplot(xticks=[], yticks=[], frame_on=False)
    largest = float(np.abs(K).max()) or 1.0
    look = {"cmap": "cividis", "vmin": -largest, "vmax": largest, "interpolation": "antialiased"}
    bar = figure.colorbar(axes.imshow(mosaic, **look), pad=0.02, aspect=30)
    bar.set_label("entry of K", fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    axes.set_title(textwrap.fill(title, int(max(width, 3) / (TEXT * LETTER))), fontsize=TEXT)
    note = "" if use is None else ", sorted by use from the upper left"
    axes.set_xlabel(f"{m} rows{note}", fontsize=SMALL)
    return figure


def plot_patches(rows: Arrays, shape: tuple[int, int]) -> Figure:
    """Patches side by side, a line for each key, grey in [0, 1]; below each its PSNR in dB.

    **Arguments**: `rows`: `{"noisy": …, "full": …, "truth": …}`, each `(count, n)`, and a PSNR
    (peak 1) where there is a `truth`; `shape` `(h, w)` with `h w = n`. Values outside [0, 1] look
    black or white, but count as they are.

    **Errors**: a `ValueError` for other shapes, no rows, or more patches than fit on a page.
    """
    patches = _arrays("rows", rows, shape)
    count = len(next(iter(patches.values())))
    left = 0.25 + TEXT * LETTER * max(map(len, patches))
    width = min(0.8, (WIDTH - left) / count - 0.06)
    _require(width > 0.45, f"rows must have few enough patches for a page's width; got {count}")
    pictures = [patch.reshape(shape) for row in patches.values() for patch in row]
    figure = _gallery(pictures, count, width, (0.06, 0.22), (left, 0.06, 0.22))
    for i, key in enumerate(patches):
        line = figure.axes[i * count : (i + 1) * count]
        line[0].set_ylabel(key, fontsize=TEXT, rotation=0, ha="right", va="center")
        if "truth" in patches and key != "truth":
            for axes, patch, truth in zip(line, patches[key], patches["truth"], strict=True):
                axes.set_xlabel(f"{_psnr(patch, truth):.1f} dB", fontsize=TINY, labelpad=2)
    return figure


def plot_photograph(
    pictures: Arrays,
    *,
    truth: ArrayLike | None = None,
    metrics: Mapping[str, Numbers] | None = None,
    columns: int = 4,
) -> Figure:
    """Photographs side by side, grey in [0, 1]; above each its PSNR (dB, peak 1) and SSIM.

    **Arguments**: `pictures`, each `(h, w)`; `truth` `(h, w)`, by default `pictures["truth"]` if it
    is there; `metrics`, `{name: {"psnr": …, "ssim": …}}`, goes before a PSNR computed here. At 150
    dpi a pixel is a whole number of dots wherever the page is wide enough.

    **Errors**: a `ValueError` for other shapes, no pictures, or more than 6 columns.
    """
    images = _arrays("pictures", pictures)
    truth = images.get("truth") if truth is None else np.asarray(truth, float)
    if truth is not None:
        _arrays("pictures and truth", images | {"truth": truth})
    _require(1 <= columns <= 6, f"columns must be from 1 to 6, lest titles touch; got {columns}")
    titles, columns = [], min(columns, len(images))
    w = next(iter(images.values())).shape[1]
    most = min(3.0, (WIDTH - 0.1) / columns - 0.1) * DPI
    width = (w * int(most / w) or most) / DPI
    gap = max(0.1, 1.5 - width)
    letters = int((width + gap) / (TINY * LETTER))
    for name, image in images.items():
        numbers = dict((metrics or {}).get(name, {}))
        if truth is not None and name != "truth":
            numbers.setdefault("psnr", _psnr(image, truth))
        texts = {"psnr": "{:.2f} dB", "ssim": "SSIM {:.3f}"}
        below = ", ".join(texts[key].format(numbers[key]) for key in texts if key in numbers)
        titles.append("\n".join(filter(None, [textwrap.fill(name, letters), below])))
    head = 0.1 + 0.15 * max(1 + title.count("\n") for title in titles)
    figure = _gallery(list(images.values()), columns, width, (gap, head), (gap, head, 0.1))
    for axes, title in zip(figure.axes, titles, strict=True):
        axes.set_title(title, fontsize=TINY, pad=3)
    return figure


def save_figure(figure: Figure, path_without_suffix: str | Path) -> list[Path]:
    """Write a figure as PDF and PNG (150 dpi), each whole or not at all, and return their paths.

    Where drawing fails nothing is written. The same figure gives the same bytes at any time.

    **Errors**: a `ValueError` for a path that ends in `.pdf` or `.png`.
    """
    from hypergrad.records import write_bytes

    bare = Path(path_without_suffix).suffix not in (".pdf", ".png")
    _require(bare, f"the path must have no suffix; got {path_without_suffix}: leave it out")
    drawn = {}
    with matplotlib.rc_context({"pdf.fonttype": 42, "savefig.bbox": None}):
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", None)):
            figure.savefig(file := io.BytesIO(), format=suffix, dpi=DPI, metadata=metadata)
            drawn[Path(f"{path_without_suffix}.{suffix}")] = file.getvalue()
    for path, content in drawn.items():
        write_bytes(path, lambda file, content=content: file.write(content))
    return list(drawn)


# ------------------------------------------------------------------- the parts of own figures


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """A white figure of so many inches, without pyplot."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _gallery(
    pictures: list[Floats], columns: int, width: float, gaps: tuple[float, float], margins: Any
) -> Figure:
    """Grey pictures at exact places; `margins` are left, top and bottom, all lengths in inches."""
    (h, w), (left, top, bottom) = pictures[0].shape, margins
    right, down = width + gaps[0], width * h / w + gaps[1]  # from one picture to the next
    lines = math.ceil(len(pictures) / columns)
    size = np.array([left + columns * right, top + lines * down - gaps[1] + bottom])
    figure = new_figure(size[0], size[1], None)
    # Enlarged pixels stay sharp; only a picture that has to shrink is averaged.
    way = "nearest" if width * DPI > w - 0.5 else "antialiased"
    for i, picture in enumerate(pictures):
        line, column = divmod(i, columns)
        corner = left + column * right, size[1] - top - line * down - width * h / w
        x, y, across, along = np.divide((*corner, width, width * h / w), (*size, *size))
        axes = figure.add_axes((x, y, across, along), xticks=[], yticks=[])
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation=way, aspect="auto")
        axes.spines[:].set_linewidth(0.4)
    return figure


def _marker(style: Style, size: float, alpha: float = 1.0) -> dict[str, Any]:
    face = {"fillstyle": style.fill, "markerfacecolor": (*to_rgb(style.color), alpha)}
    edge = {"color": style.color, "marker": style.marker, "markersize": size}
    return face | edge | {"markeredgewidth": 1.1, "markerfacecoloralt": "white"}


def draw_curve(
    axes: Axes,
    x: ArrayLike,
    intervals: Sequence[Interval],
    *,
    label: str,
    style: Style,
    width: float = 1.6,
    place: tuple[int, int] = (0, 1),
    exponents: bool = False,
) -> None:
    """Means as a line with markers, their intervals as a band.

    `place`, number of the curve and how many there are: markers of different curves then sit at
    different points, so that curves that coincide are told apart. `exponents`: the intervals are
    those of decimal logarithms (see `log_interval`), and their powers of ten are drawn.
    """
    means = np.array([interval.mean for interval in intervals])
    halves = np.nan_to_num([interval.half for interval in intervals])
    low, high = means - halves, means + halves
    if exponents:
        means, low, high = (np.power(10.0, e) for e in (means, low, high))
    every = max(1, len(means) // 8)
    look = _marker(style, 5.0) | {"linestyle": style.linestyle, "linewidth": width}
    axes.plot(x, means, label=label, markevery=(every * place[0] // place[1], every), **look)
    band = {"color": style.color, "alpha": 0.18, "linewidth": 0}
    axes.fill_between(np.asarray(x), low, high, **band)


def share_labels(target: Axes, others: Iterable[Axes]) -> None:
    """Labels of curves in other panels that the target lacks, for one legend of a whole figure."""
    _, known = target.get_legend_handles_labels()
    for axes in others:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in known and isinstance(handle, Line2D):
                (line,) = target.plot([], [])
                line.update_from(handle)
                line.set_label(label)
                known.append(label)


def label_panels(panels: Iterable[Axes], titles: Iterable[str]) -> None:
    """(a), (b), ... before the titles, for a caption to refer to."""
    for letter, panel, title in zip("abcdefgh", panels, titles, strict=False):
        panel.set_title(f"({letter}) {title}", fontsize=TEXT, loc="left")


def tidy(axes: Axes, xlabel: str, ylabel: str = "") -> None:
    """Labels, a light grid, no frame above and right."""
    axes.set_xlabel(xlabel, fontsize=TEXT)
    axes.set_ylabel(ylabel, fontsize=TEXT)
    axes.grid(True, color="0.88", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Figure, axes: Axes) -> None:
    """All labels in as many columns as fit; the figure grows by what they need."""
    handles, labels = axes.get_legend_handles_labels()
    entry = 0.65 + SMALL * LETTER * max(map(len, labels))
    lines = math.ceil(len(labels) / max(1, int((figure.get_figwidth() - 0.2) / entry)))
    figure.set_figheight(figure.get_figheight() + 0.18 * lines)
    look = {"ncols": math.ceil(len(labels) / lines), "fontsize": SMALL, "handlelength": 3.2}
    figure.legend(handles, labels, loc="outside lower center", frameon=False, **look)


def _psnr(picture: Floats, truth: Floats) -> float:
    error = float(np.mean((picture - truth) ** 2))
    return -10 * math.log10(error) if error else math.inf


def _check_records(records: Records, *keys: str) -> None:
    _require(len(records) > 0, "records must not be empty; got none: run something first")
    missing = [key for key in keys for record in records if key not in record]
    _require(not missing, f"a record must have {', '.join(keys)}; got one without {missing[:1]}")


def _arrays(what: str, given: Arrays, shape: tuple[int, int] | None = None) -> dict[str, Floats]:
    """All as matrices of one shape, finite, and with rows that are pictures of `shape` if given."""
    arrays = {name: np.asarray(value, float) for name, value in given.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    same = len(set(shapes.values())) == 1 and all(a.ndim == 2 and a.size for a in arrays.values())
    _require(same, f"{what} must be matrices of one shape, not empty; got {shapes or 'none'}")
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    _require(not bad, f"{what} must be finite; got NaN or inf in {', '.join(bad)}")
    n = next(iter(shapes.values()))[1]
    fits = shape is None or (len(shape) == 2 and math.prod(shape) == n)
    _require(fits, f"shape must be (h, w) with h w = {n}; got {shape}: a signal has (1, {n})")
    return arrays


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
