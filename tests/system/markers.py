"""Words to plant where something private may stand, and to look for where it must not."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass, field
from urllib.parse import quote


@dataclass
class Markers:
    """Every word is unlike any other and says, when it is found, where it had been planted."""

    planted: dict[str, str] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(100))

    def word(self, where: str) -> str:
        """A word to plant: letters and digits only, so no encoding changes it."""
        word = f"Zq{where.replace('-', '').replace(' ', '')}{next(self._numbers)}Qz"
        self.planted[word] = where
        return word

    def phone(self, where: str) -> str:
        """A phone number, with its plus; found however it is written."""
        digits = f"491520{next(self._numbers)}4711"
        self.planted[digits] = f"the phone number of {where}"
        return f"+{digits}"

    def secret(self, where: str) -> str:
        """Something that is long enough for a token."""
        return f"{self.word(where)}{'x' * 24}"

    def found_in(self, haystack: bytes) -> list[str]:
        """Where the words had been planted that are found, each with what stands around it."""
        low = haystack.lower()
        found = []
        for word, where in self.planted.items():
            # No encoding changes a word, but base64 does: three ways, by where the word begins.
            for form in (word.lower().encode(), *_in_base64(word)):
                at = low.find(form) if form.islower() else haystack.find(form)
                if at >= 0:
                    around = haystack[max(0, at - 200) : at + len(form) + 60]
                    found.append(f"{where}: …{around!r}…")
                    break
        return found


def _in_base64(word: str) -> list[bytes]:
    forms = []
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + word.encode())
        # What shares its bits with a neighbour is cut off.
        forms.append(whole[(shift * 8 + 5) // 6 : -4])
    return forms


def in_path(key: str) -> str:
    """A session key as a part of a path."""
    return quote(key, safe="")
