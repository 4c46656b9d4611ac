"""Fence the doctests of docstrings: plain Markdown would read `>>>` as a quotation."""

import re
from typing import Any

from griffe import Extension, Object

_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class DoctestBlocks(Extension):
    """Put every doctest into a code block."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Fence the doctests of one docstring."""
        if obj.docstring:
            obj.docstring.value = _DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
