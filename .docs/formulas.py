"""Write formulas as MathML, which browsers draw themselves: a page loads nothing for them."""

import html
import re

from latex2mathml.converter import convert

# As pymdownx.arithmatex marks them; a formula on lines of its own is in a block.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    def mathml(found: re.Match[str]) -> str:
        tex = html.unescape(found[2]).replace(r"\arg", r"\operatorname{arg}")
        written = convert(tex, display="block" if found[1] == "div" else "inline")
        # The converter knows neither `\arg` nor angle brackets of a given size.
        return written.replace(r"\langle", "⟨").replace(r"\rangle", "⟩")

    return _FORMULA.sub(mathml, content)
