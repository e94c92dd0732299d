"""What a harness may do: how a permission that it asks for is decided, and how people are asked.

The policy of a client is no enforcement: a harness that does not ask is not stopped here. That is
what its own mode, set and read back, and the sandbox are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from acp_svc.domain.cutting import line
from acp_svc.domain.toolcalls import KEPT_BYTES, ToolCall, shown_arguments


class PermissionMode(Enum):
    """What happens when a harness asks for permission. Values as in the configuration."""

    APPROVE_READS = "approve-reads"
    """Reading is allowed, everything else is rejected."""
    APPROVE_ALL = "approve-all"
    DENY_ALL = "deny-all"
    ASK = "ask"
    """Reading is allowed. People are asked about the rest: without an answer it is rejected."""


class Rule(Enum):
    """Which rule decided. Values as in `PermissionDecided`."""

    APPROVE_ALL = "approve-all"
    APPROVE_READS = "approve-reads"
    DENY_ALL = "deny-all"
    ASKED = "asked"
    REMEMBERED = "remembered"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    NO_OPTION = "no_option"


READING = frozenset({"read", "search"})
"""Kinds that only read. A kind that is missing or unknown is none of them."""
ALLOWING = ("allow_once", "allow_always")
REJECTING = ("reject_once", "reject_always")
"""Kinds of options in the order of choosing: what holds once goes before what holds for good."""
MOST_OPTIONS = 32
NAME_CHARS = 128

_OURS = {
    "allow_once": ("allow", "Allow once"),
    "allow_always": ("allow-always", "Allow for the rest of the session"),
    "reject_once": ("deny", "Deny"),
    "reject_always": ("deny-always", "Deny for the rest of the session"),
}


@dataclass(frozen=True, slots=True)
class Option:
    """An answer that a harness offers."""

    option_id: str
    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What came of a permission. Without `option` the harness is told that it was cancelled."""

    allowed: bool
    rule: Rule
    option: Option | None = None
    responder: str = ""
    """Who answered. Empty when a rule decided."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An answer that people may give, under an id of ours, and what the harness is told then."""

    option_id: str
    name: str
    kind: str
    option: Option | None


@dataclass(frozen=True, slots=True)
class Question:
    """What people are asked."""

    title: str
    kind: str
    locations: tuple[str, ...]
    arguments: dict[str, object]
    offers: tuple[Offer, ...]
    default_id: str
    """The offer that is taken when nobody answers in time. It denies."""


def decide(
    mode: PermissionMode,
    call: ToolCall,
    options: Sequence[Option],
    remembered: Mapping[str, bool],
) -> Decision | None:
    """Decide by rule; None means that people are asked.

    `remembered` is what people said for the rest of the session, by `memory_key`.
    """
    match mode:
        case PermissionMode.APPROVE_ALL:
            return _by_rule(True, Rule.APPROVE_ALL, options)
        case PermissionMode.DENY_ALL:
            return _by_rule(False, Rule.DENY_ALL, options)
        case PermissionMode.APPROVE_READS:
            return _by_rule(reads(call), Rule.APPROVE_READS, options)
        case PermissionMode.ASK if reads(call) and choose(options, allow=True) is not None:
            # Somebody on a phone who had to allow every look would soon allow anything.
            return _by_rule(True, Rule.APPROVE_READS, options)
    if choose(options, allow=True) is None:
        # Whatever people said, it could not be allowed.
        return Decision(False, Rule.NO_OPTION, choose(options, allow=False))
    said = remembered.get(memory_key(call))
    return None if said is None else _by_rule(said, Rule.REMEMBERED, options)


def reads(call: ToolCall) -> bool:
    """Whether a call only reads, as far as the harness says. What it does not say is no reading."""
    return call.kind in READING and not call.diffs


def choose(options: Sequence[Option], *, allow: bool) -> Option | None:
    """Return the first option that allows (or rejects) once, else the first that does for good.

    Never one of the other meaning, and never by its name or place: harnesses name and order them
    as they like.
    """
    for kind in ALLOWING if allow else REJECTING:
        for option in options:
            if option.kind == kind:
                return option
    return None


def _by_rule(allow: bool, rule: Rule, options: Sequence[Option]) -> Decision:
    option = choose(options, allow=allow)
    if allow and option is None:
        return Decision(False, Rule.NO_OPTION)
    return Decision(allow, rule, option)


def memory_key(call: ToolCall) -> str:
    """Name what an answer for the rest of the session is about; empty when it cannot be told.

    The same thing again, no more: what a harness itself means by "always" may be wider, and then it
    does not ask. An edit is the same when it is of the same files, else the arguments count too.
    """
    if not call.kind or not (call.title or call.arguments):
        return ""
    arguments = None if call.kind == "edit" and call.shown_locations else call.arguments
    about = json.dumps(
        [call.kind, call.title, call.shown_locations, arguments], sort_keys=True, default=str
    )
    # What is so long was cut, and another one may begin the same.
    return hashlib.sha256(about.encode()).hexdigest() if len(about) < KEPT_BYTES // 2 else ""


def question(call: ToolCall, options: Sequence[Option]) -> Question:
    """Build what people are asked about a call."""
    offers: list[Offer] = []
    taken: set[str] = set()
    for option in options:
        if option.kind not in _OURS or len(offers) == MOST_OPTIONS - 1:
            continue
        base, usual_name = _OURS[option.kind]
        option_id, count = base, 1
        while option_id in taken:
            count += 1
            option_id = f"{base}-{count}"
        taken.add(option_id)
        name = line(option.name, NAME_CHARS) or usual_name
        offers.append(Offer(option_id, name, option.kind, option))
    default = next((offer for offer in offers if offer.kind == REJECTING[0]), None)
    if default is None:
        # Whoever is asked must be able to say no.
        option_id, name = _OURS["reject_once"]
        default = Offer(option_id, name, "reject_once", choose(options, allow=False))
        offers.append(default)
    return Question(
        call.shown_title,
        call.shown_kind,
        call.shown_locations,
        shown_arguments(call),
        tuple(offers),
        default.option_id,
    )


def answered(asked: Question, option_id: str, responder: str) -> Decision:
    """Return what an answer decides. An option that was never offered allows nothing."""
    rule = Rule.ASKED if responder else Rule.EXPIRED
    for offer in asked.offers:
        if offer.option_id == option_id:
            return Decision(offer.kind in ALLOWING, rule, offer.option, responder)
    default = next(offer for offer in asked.offers if offer.option_id == asked.default_id)
    return Decision(False, rule, default.option, responder)


def to_remember(asked: Question, option_id: str, call: ToolCall) -> tuple[str, bool] | None:
    """Return what an answer says for the rest of the session: the key and what was said."""
    key = memory_key(call)
    for offer in asked.offers:
        if offer.option_id == option_id and offer.kind.endswith("_always") and key:
            return key, offer.kind in ALLOWING
    return None


CANCELLED = Decision(False, Rule.CANCELLED)
"""The turn ended before anybody decided."""
