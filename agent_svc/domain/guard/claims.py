"""Finds claims that a run may not or cannot delegate, and results that no sub-agent gave.

A claim needs three things in one sentence: the speaker (or this place), that something cannot be,
and that this something is starting a sub-agent. Sentences about other people's permissions, about
what sub-agents may do, questions and suppositions have one of them missing. Precision comes first:
a claim that is missed reaches the customer as it would without a guard, while a plain reply that is
caught costs a model call and an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from agent_svc.domain.content import excerpt
from agent_svc.domain.guard.facts import Facts, Finding
from agent_svc.domain.guard.patterns import Pattern, claims, compiled, invented
from agent_svc.domain.guard.prose import on_topic, own_words, plain, sentences

EXCERPT_CHARS = 300

_ANAPHORA = compiled(
    r"(?:<CANNOT><TO>\s+(?:do|perform|carry out|comply with) (?:that|this|so)\b|"
    r"<LACK>[^.?!]{0,30}?\b<RIGHT> (?:to do|for) (?:that|this|so|it)\b)"
)
_STARTING = compiled("<START>")
_RIGHTS = compiled(
    r"permi[st]|authori[sz]|\brights?\b|allowed|privilege|clearance|forbid|prohibit|approval|"
    r"berechtigung|erlaub|rechte\b|autoriza|droit|direito"
)

# What stands right before a claim and takes it back: a supposition, somebody else's words.
_SUPPOSED = re.compile(
    r"(?:\b(?:if|unless|whether|suppose|supposing|in case|whenever|until|wenn|falls|ob|si|se)\b"
    r"[^,;:]{0,40}|\bwhen (?!i tr|tr|attempt)[^,;:]{0,40}|"
    r"\b(?:models?|assistants?|bots?|agents?) (?:\w+ )?(?:says?|claims?|answers?|repl(?:y|ies)|"
    r"said|claimed|answered|replied)\b[^.]{0,20}|"
    r"\bnot (?:true|correct|right|the case) that\b[^,;]{0,10}|"
    r"\b(?:nothing|nobody|no one|no rule|no policy)\b[^,;]{0,10}|"
    r"\b(?:example|for instance|e\.g\.|such as|like)[:,]? ?)$",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"^(?:and |but |so |or )?(?:do|does|did|can|could|am|are|is|was|why|what|how|when|should|would|"
    r"may|shall|who|where|which|kann|darf|soll|warum|wieso|puedo|puis|posso)\b.*\?\W*$",
    re.IGNORECASE,
)


def false_claim(text: str, facts: Facts, *, verbatim: bool = False) -> Finding | None:
    """Find a claim that this run may not or cannot delegate, and that the facts contradict.

    With `verbatim` code and quotations count too: for text whose end is not known.

    None for an honest refusal: the tool is not offered, the cap of children is reached, the budget
    is used up, or a tool result of this run said no.
    """
    if facts.allows("permission") or not on_topic(text):
        return None
    spoken = list(sentences(plain(text) if verbatim else own_words(text)))
    for sentence in filter(on_topic, spoken):
        for pattern in _matches(sentence, claims()):
            if facts.allows(pattern.subject):
                return None
            about = pattern.subject
            if about == "tool" and _RIGHTS.search(sentence):
                about = "permission"
            return Finding("false_claim", about, excerpt(sentence, EXCERPT_CHARS))
    # "I am not allowed to do that. Spawning sub-agents is for administrators."
    for first, second in pairwise(spoken):
        if not (on_topic(first) or on_topic(second)):
            continue
        for claim, topic in ((first, second), (second, first)):
            found = _ANAPHORA.search(claim)
            if found and _meant(claim, found.start()) and _STARTING.search(topic):
                return Finding("false_claim", "permission", excerpt(claim, EXCERPT_CHARS))
    return None


def invented_result(text: str, facts: Facts, *, verbatim: bool = False) -> Finding | None:
    """Find news of sub-agents that nobody started: not this run, nor any before it."""
    if facts.allows("result") or not on_topic(text):
        return None
    for sentence in filter(on_topic, sentences(plain(text) if verbatim else own_words(text))):
        for pattern in _matches(sentence, invented()):
            return Finding("invented_result", pattern.subject, excerpt(sentence, EXCERPT_CHARS))
    return None


def _matches(sentence: str, patterns: Sequence[Pattern]) -> Iterator[Pattern]:
    if _QUESTION.match(sentence):
        return
    for pattern in patterns:
        found = pattern.regex.search(sentence)
        if found is None:
            continue
        claim = "claim" if "claim" in pattern.regex.groupindex else 0
        if _meant(sentence, found.start(claim)):
            yield pattern


def _meant(sentence: str, start: int) -> bool:
    return not _SUPPOSED.search(sentence[:start])
