"""Offer each tutorial as a notebook: its text, its code, and the outputs that the page shows.

The tests run the code of the pages and compare what it prints with these outputs.
"""

import json
import re
from pathlib import Path
from typing import Any

_TUTORIALS = ("learning", "comparing")


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    name = Path(page.file.src_uri).stem
    if name not in _TUTORIALS:
        return markdown
    return f'{markdown}\n\n<a href="../{name}.ipynb" download>This page as a notebook</a>\n'


def on_post_build(config: Any, **_: object) -> None:
    for name in _TUTORIALS:
        page = Path(config.docs_dir, f"{name}.md").read_text(encoding="utf-8")
        notebook = {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": _cells(page)}
        Path(config.site_dir, f"{name}.ipynb").write_text(json.dumps(notebook, indent=1))


def _cells(page: str) -> list[dict[str, Any]]:
    text, *blocks = re.split(r"```(python|text)\n(.*?)```\n", page, flags=re.DOTALL)
    cells: list[dict[str, Any]] = [_cell("markdown", text)]
    for i in range(0, len(blocks), 3):
        language, block, text = blocks[i : i + 3]
        if language == "python":
            cells.append(_cell("code", block) | {"execution_count": None, "outputs": []})
        else:  # printed by the code before it
            code = [cell for cell in cells if cell["cell_type"] == "code"][-1]
            code["outputs"] = [{"output_type": "stream", "name": "stdout", "text": block}]
        cells.append(_cell("markdown", text))
    return [cell for cell in cells if cell["source"]]


def _cell(kind: str, source: str) -> dict[str, Any]:
    without_pages = re.sub(r"\[([^\]]*)\]\([\w.]+\.md[^)]*\)", r"\1", source)
    return {"cell_type": kind, "metadata": {}, "source": without_pages.strip()}
