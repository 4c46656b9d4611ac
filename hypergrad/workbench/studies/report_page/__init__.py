"""Reports as one page: tables, interactive curves and pictures of one run or of several."""

from __future__ import annotations

from hypergrad.workbench.studies.report_page.page import report_page

__all__ = ["report_page"]
