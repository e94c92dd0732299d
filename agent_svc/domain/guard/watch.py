"""Decides which text of a reply may be shown while the reply is still being written.

A claim lies within a sentence, or within two that follow each other, and so does what shows that it
is none. So text is held back only where a claim could still come of it: within a sentence from the
first word that claims have in common; a sentence that denies something, or speaks of agents, until
the one after it is whole; and what looks like the beginning of a call, until it is none. Everything
else goes out word by word, as it would without a guard.

Where delegation was asked for in so many words, the whole reply waits: not delegating is what would
be caught, and no single sentence shows that.
"""

from __future__ import annotations

import re

from agent_svc.domain.guard.claims import false_claim, invented_result
from agent_svc.domain.guard.facts import Facts
from agent_svc.domain.guard.prose import LONGEST_SENTENCE

CODE_CHARS = 300
"""Text after the beginning of a code block or an object that must name no tool to be shown."""

# Words without which no claim is made, whichever comes first in a sentence. What may come before
# them says nothing yet: "As an", "The", "In this environment".
_SIGNAL = re.compile(
    r"\b(?:i|i['’]\w+|we|we['’]\w+|my|(?:sub|sous|unter|multi|hilfs)[- ‑]?\w*|agent\w*|spawn\w*|"
    r"session\w*|sesion\w*|sitzung\w*|sess(?:ão|ões)|deleg\w*|dél[eé]g\w*|worker\w*|assistant\w*|"
    r"ai|language|permi\w*|allow\w*|authori\w*|unable|unavailable|cannot|\w+n['’]t|not|no|none|"
    r"nothing|limit\w*|max\w*|cap|quota|ceiling|depth|budget\w*|token\w*|credit\w*|tool\w*|"
    r"access\w*|forbid\w*|prohibit\w*|prevent\w*|restrict\w*|disabled|blocked|denied|beyond|"
    r"policy|role|rights|system|sorry|apolog\w*|unfortunately|regret\w*|sadly|afraid|launch\w*|"
    r"fork\w*|spin\w*|orchestrat\w*|ich|mir|leider|bedauer\w*|kein\w*|nicht|werkzeug\w*|"
    r"lament\w*|desgrac\w*|desafort\w*|siento|lanz\w*|inici\w*|je|j['’]\w*|m['’]\w*|désol\w*|"
    r"malheur\w*|não|nao|infeliz\w*|desculp\w*|lancei|criei)\b",
    re.IGNORECASE,
)
# A sentence with one of these waits for the one after it, which may be what it is about.
_UNEASY = re.compile(
    r"\b(?:sub|sous|unter)[- ]?(?:agent|session)|agent|session|spawn|delega|délèg|worker|"
    r"n't\b|\bnot\b|\bno\b|\bcannot\b|\bunable\b|sorry|apolog|unfortunate|regret|afraid|permi|"
    r"authori|\black\b|\bnicht\b|\bkein|leider|\blo siento|\bpas\b|désol|\bnão\b|infeliz|desculp",
    re.IGNORECASE,
)
_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|\n+")
_OPENER = re.compile(r"\s*(?:[{\[<]|```|~~~|(?:thought|action)s?:|functions?\.)", re.IGNORECASE)


class Screen:
    """Holds back the text of one reply. With `whole`, all of it."""

    def __init__(self, facts: Facts, *, whole: bool) -> None:
        self._facts = facts
        self._tools = [_loosely(name) for name in facts.tools]
        self._text = ""
        self._shown = 0
        # Where the sentence begins that is not whole yet; where the one before it began, when that
        # one waits for it; where code began.
        self._sentence = 0
        self._uneasy: int | None = None
        self._code: int | None = None
        self._closed = whole

    def feed(self, piece: str) -> str:
        """Take a piece of the reply; returns what may be shown now."""
        self._text += piece
        while not self._closed and (end := self._end_of_sentence()) is not None:
            self._judge(end)
        if self._closed or self._code is not None:
            return ""
        return self._show(self._free())

    def rest(self) -> str:
        """Return what was held back, once the whole reply was judged clean."""
        return self._show(len(self._text))

    def _show(self, until: int) -> str:
        text = self._text[self._shown : until]
        self._shown = max(self._shown, until)
        return text

    def _end_of_sentence(self) -> int | None:
        """Where the sentence ends that is being written. A quotation or code is never cut."""
        for found in _END.finditer(self._text, self._sentence):
            if found.end() == len(self._text) and "\n" not in found[0]:
                return None  # more of the same space may follow
            sentence = self._text[self._sentence : found.end()]
            quotes = sentence.count("`") % 2 or sentence.count('"') % 2
            open_quote = sentence.count("“") > sentence.count("”")
            if "\n" in found[0] or not (quotes or open_quote):
                return found.end()
        # Text without an end is taken in pieces that the detectors would not look at whole either.
        whole = len(self._text) - self._sentence >= 2 * LONGEST_SENTENCE
        return self._sentence + LONGEST_SENTENCE if whole else None

    def _judge(self, end: int) -> None:
        start, self._sentence = self._sentence, end
        sentence = self._text[start:end]
        if self._names_tool(self._text[start if self._code is None else self._code : end]):
            self._closed = True
            return
        if self._code is not None or _OPENER.match(sentence):
            self._code = start if self._code is None else self._code
            if end - self._code < CODE_CHARS and not _fence_closed(self._text[self._code : end]):
                return
            self._code, self._uneasy = None, None
            return
        if not _UNEASY.search(sentence):
            self._uneasy = None
            return
        before = start if self._uneasy is None else self._uneasy
        if self._claims(sentence) or self._claims(self._text[before:end]):
            self._closed = True
            return
        self._uneasy = start

    def _free(self) -> int:
        """Up to where the text may be shown."""
        if self._uneasy is not None:
            return self._uneasy
        tail = self._text[self._sentence :]
        if _OPENER.match(tail) or not tail.strip():
            return self._sentence
        # The last word may still become one of the signals.
        whole_words = 1 + max(tail.rfind(" "), tail.rfind("\n"))
        found = _SIGNAL.search(tail)
        free = whole_words if found is None else min(whole_words, found.start())
        return self._sentence + free

    def _claims(self, text: str) -> bool:
        return any(
            find(text, self._facts, verbatim=True) is not None
            for find in (false_claim, invented_result)
        )

    def _names_tool(self, text: str) -> bool:
        plain = _loosely(text)
        return any(name in plain for name in self._tools)


def _loosely(text: str) -> str:
    return re.sub(r"[\W_]", "", text).lower()


def _fence_closed(code: str) -> bool:
    fence = code.lstrip()[:3]
    return fence in ("```", "~~~") and code.count(fence) > 1
