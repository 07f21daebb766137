"""Text of a model as it may be shown in a terminal, which would obey its control characters."""

from __future__ import annotations

import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def visible(text: str, *, spaces: bool = False) -> str:
    """The text with its control characters spelled out; `spaces`: spaces, tabs and newlines, too."""
    shown = CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
    return shown.replace(" ", "·").replace("\t", "\\t").replace("\n", "\\n") if spaces else shown
