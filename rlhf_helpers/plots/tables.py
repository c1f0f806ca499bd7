"""Tables of texts, to be read in a notebook."""

import html
from difflib import SequenceMatcher

import pandas as pd
from pandas.io.formats.style import Styler


def texts(table: pd.DataFrame) -> Styler:
    """A table for reading: texts are aligned to the left, and HTML in them is shown as text."""
    left = [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}]
    shown = table.style.hide(axis="index").format(precision=2, escape="html").set_table_styles(left)
    return shown.set_table_attributes('class="tex2jax_ignore mathjax_ignore"')  # "$5 or $6"


def differences(table: pd.DataFrame) -> Styler:
    """The table of `evaluation.side_by_side`, with the words marked that only one answer has."""
    pairs = [_marked(*pair) for pair in table[["untuned", "tuned"]].to_numpy()]
    marked = pd.DataFrame(pairs, table.index, ["untuned", "tuned"])
    shown = texts(table.assign(**marked))
    return shown.format(subset=["untuned", "tuned"], escape=None)  # `_marked` has escaped them


def _marked(first: str, second: str) -> tuple[str, str]:
    """Both texts as HTML that shows them as they are, with the words that differ in <mark>."""
    words = [text.split() for text in (first, second)]
    shown: tuple[list[str], list[str]] = ([], [])
    for what, *spans in SequenceMatcher(a=words[0], b=words[1], autojunk=False).get_opcodes():
        for side, own, (start, end) in zip(shown, words, (spans[:2], spans[2:]), strict=True):
            run = html.escape(" ".join(own[start:end]))
            if run:
                side.append(run if what == "equal" else f"<mark>{run}</mark>")
    return " ".join(shown[0]), " ".join(shown[1])
