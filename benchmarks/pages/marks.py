"""The one writer of measured numbers: whatever stands in a page between a pair of marks is made of rows.

<!-- measured: NAME -->
...
<!-- /measured -->
"""

from __future__ import annotations

import re
from collections.abc import Callable

_BLOCK = re.compile(r"(<!-- measured: (?P<name>[\w-]+) -->\n).*?(<!-- /measured -->)", re.DOTALL)


def filled(text: str, make: Callable[[str], str]) -> str:
    """The text with every block made anew from its name.

    >>> filled("a\\n<!-- measured: b -->\\nold\\n<!-- /measured -->\\nc", str.upper)
    'a\\n<!-- measured: b -->\\nB\\n<!-- /measured -->\\nc'
    """
    return _BLOCK.sub(lambda block: f"{block[1]}{make(block['name'])}\n{block[3]}", text)


def names(text: str) -> list[str]:
    return [block["name"] for block in _BLOCK.finditer(text)]


def outside(text: str) -> str:
    """What people wrote: the text without its blocks."""
    return _BLOCK.sub("", text)
