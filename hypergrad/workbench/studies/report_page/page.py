"""Put the page together: text in, HTML out, and everything that comes from files escaped."""

from __future__ import annotations

import base64
import gzip
import html
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from hypergrad._foundation.errors import HypergradError, reason_of
from hypergrad._foundation.records import format_cell, to_json
from hypergrad.comparison.result import COLUMNS
from hypergrad.workbench.studies.baselines import NAMES
from hypergrad.workbench.studies.report_page.curves import Curves, comparison_curves, loss_curves
from hypergrad.workbench.studies.report_page.pictures import (
    Picture,
    encode,
    photographs,
    still_pictures,
)
from hypergrad.workbench.studies.report_page.runs import Record, Run, command_again, read_runs, say
from hypergrad.workbench.studies.tables import GAIN, TABLE, ssim_fell, still_improving

__all__ = ["report_page"]

# Characters of a page, and what its pictures get of them however long the tables are: below 5 MB a
# page can be mailed and attached to an issue.
_SIZE, _LEAST = 4_900_000, 500_000

_EPOCHS = {
    "strategy": "strategy",
    "epoch": "epoch",
    "seconds": "training time (s)",
    "train_loss": "training loss",
    "validation_loss": "held-out loss",
    "residual": "adjoint residual",
    "converged": "share converged",
    "counted": "share counted",
}


def report_page(folders: Sequence[str | Path]) -> str:
    """Return the page of one run or of several side by side, as HTML that loads nothing else.

    Sections whose files are missing are left out.

    **Raises**: `HypergradError` if a folder holds no run, or a file that cannot be read.
    """
    runs = read_runs(folders)
    gradients, losses = comparison_curves(runs), loss_curves(runs)
    shown = photographs(runs)
    stills = [(run, path) for run in runs for path in still_pictures(run)]
    sections = {
        "Learned operators": _conclusions(say(runs, _gain) + say(runs, _still_improving))
        + _table(_evaluation_rows(runs), _EVALUATION, runs),
        "Loss while learning": _figures(losses, first=0),
        "A photograph": _viewers(runs, shown)
        + _conclusions(say(runs, lambda run: ssim_fell(run.photograph, run.evaluation)))
        + _table(_photograph_rows(runs), _METRICS, runs),
        "Gradients on one batch, before learning": _figures(gradients, first=len(losses))
        + _table(_rows(runs, "comparison"), COLUMNS, runs),
        "Every epoch": _folded("table", _table(_rows(runs, "training"), _EPOCHS, runs)),
        "Patches and rows of K": "".join(
            _still(runs, run, path, i) for i, (run, path) in enumerate(stills, len(shown))
        ),
        "Run it again": "".join(map(_again, runs)),
        "Settings": _side_by_side(runs, [run.config for run in runs]),
        "Versions and machine": _side_by_side(runs, [_flat(run.environment) for run in runs]),
    }
    parts = {
        "title": html.escape(f"hypergrad: {', '.join(run.name for run in runs)}"),
        "sections": "".join(
            f"<section><h2>{heading}</h2>{content}</section>\n"
            for heading, content in sections.items()
            if content
        ),
        "figures": _json([curves.figure for curves in (*losses, *gradients)]),
        "plotly": _plotly() if losses or gradients else "",
    }
    images = [*(picture.image for picture in shown), *(_opened(path) for _, path in stills)]
    uris, lost = encode(images, max(_LEAST, _SIZE - sum(map(len, parts.values()))))
    note = f'<p class="note">Pictures are {lost}.</p>' if lost else ""
    template = string.Template(Path(__file__).with_name("page.html").read_text("utf-8"))
    return template.substitute(parts, pictures=_json(uris), note=note)


def _plotly() -> str:
    """Return plotly.js as base64 of gzip: a third of its 5 MB, which the browser unpacks."""
    import plotly.offline

    packed = gzip.compress(plotly.offline.get_plotlyjs().encode(), mtime=0)
    return base64.b64encode(packed).decode()


def _json(value: Any) -> str:
    """Return JSON that cannot end the script element that it stands in."""
    return to_json(value).replace("<", "\\u003c")


# ----------------------------------------------------------------------------------- tables

_EVALUATION = {"operator": "operator", "gain": "gain (dB)", **TABLE}
_METRICS = {"picture": "picture", "psnr": "PSNR (dB)", "ssim": "SSIM"}


def _rows(runs: Iterable[Run], what: str) -> list[Record]:
    return [{"run": run.name, **record} for run in runs for record in getattr(run, what)]


def _evaluation_rows(runs: Sequence[Run]) -> list[Record]:
    gained = {run.name: run.shown_gains() for run in runs}
    rows = _rows(runs, "evaluation")
    rows = [{**row, "gain": gained[row["run"]].get(row.get("operator", ""))} for row in rows]
    # As the table of the terminal: what is learned first, each kind by its gain.
    return sorted(rows, key=lambda row: ("seconds" not in row, -(row["gain"] or 0.0)))


def _photograph_rows(runs: Iterable[Run]) -> list[Record]:
    return [
        {"run": run.name, "picture": name, **metrics}
        for run in runs
        for name, metrics in run.photograph.items()
    ]


def _table(rows: Sequence[Record], columns: Mapping[str, str], runs: Sequence[Run]) -> str:
    """Return a table whose headings sort it; columns that are empty everywhere are left out."""
    if not rows:
        return ""
    if len(runs) > 1:
        first, *others = columns.items()
        columns = dict([first, ("run", "run"), *others])
    used = [key for key in columns if any(row.get(key) is not None for row in rows)]
    # A column of numbers is aligned at the right, its heading and its gaps with it.
    kinds = {key: _kind([row.get(key) for row in rows]) for key in used}
    head = "".join(f"<th{kinds[k]}><button>{html.escape(columns[k])}</button></th>" for k in used)
    body = "".join(
        f"<tr>{''.join(_cell(row.get(key), kinds[key]) for key in used)}</tr>\n" for row in rows
    )
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _kind(values: Sequence[Any]) -> str:
    return ' class="number"' if any(map(_is_number, values)) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any, kind: str) -> str:
    """Return a cell: four digits are shown, all of them are kept for sorting and on hovering."""
    digits = f' data-value="{value!r}" title="{value!r}"' if _is_number(value) else ""
    return f"<td{kind}{digits}>{html.escape(format_cell(value))}</td>"


def _side_by_side(runs: Sequence[Run], columns: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of settings, a column for each run; rows that differ are marked."""
    keys = dict.fromkeys(key for column in columns for key in column)
    if not keys:
        return ""
    head = "".join(f"<th>{html.escape(run.name)}</th>" for run in runs)
    body = ""
    for key in keys:
        values = [_setting(column.get(key)) for column in columns]
        differs = ' class="differs"' if len(set(values)) > 1 else ""
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        body += f"<tr{differs}><th>{html.escape(key)}</th>{cells}</tr>\n"
    return (
        f'<div class="wide"><table class="settings"><thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)


def _flat(environment: Mapping[str, Any]) -> Record:
    packages = environment.get("packages")
    others = {key: value for key, value in environment.items() if key != "packages"}
    return others | (packages if isinstance(packages, dict) else {})


# -------------------------------------------------------------------------------- the parts


def _gain(run: Run) -> str:
    gained = run.gains()
    if not gained:
        return ""
    largest = max(gained.values())
    best = [label for label, gain in gained.items() if f"{gain:.2f}" == f"{largest:.2f}"]
    if largest < GAIN:
        return f"no strategy gained {GAIN} dB PSNR on held-out data (at most {largest:+.2f})"
    return f"{', '.join(best)}: the largest gain, {largest:+.2f} dB PSNR on held-out data"


def _still_improving(run: Run) -> str:
    return still_improving(run.config.get("epochs") or 0, run.evaluation)


def _conclusions(texts: Iterable[str]) -> str:
    return "".join(f'<p class="conclusion">{html.escape(text)}</p>' for text in texts)


def _figures(curves: Sequence[Curves], first: int) -> str:
    """Return places for figures, below the conclusions that they share."""
    found, said = "", None
    for i, curve in enumerate(curves, first):
        if curve.conclusions != said:
            found += ("</div>" if found else "") + _conclusions(curve.conclusions)
            found += '<div class="figures">'
            said = curve.conclusions
        found += f"<figure><figcaption>{html.escape(curve.heading)}</figcaption>"
        found += f'<div class="curves" data-figure="{i}"></div></figure>'
    return f"{found}</div>" if found else ""


def _viewers(runs: Sequence[Run], pictures: Sequence[Picture]) -> str:
    """Return for each scene two lists of pictures and a slider between the chosen two."""
    found = ""
    for group in dict.fromkeys(picture.group for picture in pictures):
        members = [(i, p) for i, p in enumerate(pictures) if p.group == group]
        names = {i: _picture_name(p, runs) for i, p in members}
        left, right = members[0][0], members[-1][0]
        if restored := [(i, p) for i, p in members if p.name not in NAMES]:
            right = max(restored, key=lambda pair: _psnr(pair[1]) or 0.0)[0]
        choices = "".join(
            f'<label>{side} <select class="{side}">'
            + "".join(
                f'<option value="{i}"{" selected" if i == chosen else ""}>{html.escape(name)}'
                "</option>"
                for i, name in names.items()
            )
            + "</select></label>"
            for side, chosen in (("left", left), ("right", right))
        )
        found += (
            f'<figure class="viewer"><div class="choices">{choices}</div>'
            '<div class="stack"><img class="right" alt="right picture">'
            '<img class="left" alt="left picture"><i></i></div>'
            '<input type="range" min="0" max="100" value="50" aria-label="share of the left '
            'picture"></figure>'
        )
    return found


def _psnr(picture: Picture) -> float | None:
    return picture.run.photograph.get(picture.name, {}).get("psnr")


def _picture_name(picture: Picture, runs: Sequence[Run]) -> str:
    name = picture.name if len(runs) == 1 else f"{picture.name} ({picture.run.name})"
    value = _psnr(picture)
    return name if value is None else f"{name}, {value:.2f} dB"


def _opened(path: Path) -> PIL.Image.Image:
    try:
        with PIL.Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise HypergradError(
            f"{path} must be a picture; got {reason_of(error)}: delete it"
        ) from None


def _still(runs: Sequence[Run], run: Run, path: Path, i: int) -> str:
    name = path.stem if len(runs) == 1 else f"{path.stem} ({run.name})"
    return _folded(name, f'<img data-picture="{i}" alt="{html.escape(name)}">')


def _folded(name: str, content: str) -> str:
    return f"<details><summary>{html.escape(name)}</summary>{content}</details>" if content else ""


def _again(run: Run) -> str:
    command = command_again(run.config)
    if command is None:
        return f"<p>{html.escape(run.name)} was started from Python with the settings below.</p>"
    return f"<pre>{html.escape(command)}</pre>"
