"""Whether the model that a provider says it served is the one that was asked for.

Providers answer with another name for the same model (a dated version, a tag, a path), and some
with another model. The first is no news; the second must be seen.
"""

from __future__ import annotations

import re

# `-latest`, a date in one of its forms, or a version of four digits and more, at the end of a name.
_VERSION = re.compile(
    r"[-@:](?:latest|preview|exp|\d{4}-\d\d-\d\d|\d\d-\d{4}|\d\d-\d\d|\d{4,}(?:-v\d+)?|0)$"
)
_FILE = re.compile(r"\.(?:gguf|bin|safetensors)$")


def same_model(asked: str, served: str) -> bool:
    """Tell whether two names mean one model. A provider that does not say served what was asked."""
    if not served or served.casefold() == asked.casefold():
        return True
    mine, theirs = _bare(asked), _bare(served)
    if ":" not in mine:  # without a tag any will do
        theirs = theirs.partition(":")[0]
    return _base(mine) == _base(theirs)


def _bare(name: str) -> str:
    # Without the vendor, or the directories of a file.
    return _FILE.sub("", name.casefold().replace("\\", "/").rpartition("/")[2])


def _base(name: str) -> str:
    while (shorter := _VERSION.sub("", name)) != name:
        name = shorter
    return name
