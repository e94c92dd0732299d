"""The runs that a conversation has below it, as its session tools see them: which, and how named.

A run sees the sub-agents of its own conversation: its own descendants, and those that earlier
messages of the same conversation started and left at work. Everything is decided from session keys,
which the scheduler builds: a descendant's key begins with its ancestor's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

State = Literal[
    "queued", "working", "waiting", "stopping", "succeeded", "failed", "cancelled", "expired"
]
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled", "expired"})
ALL = "all"
OWN = "own"
# A shorter piece of an id would be a matter of luck.
LEAST_PREFIX = 6
_BELOW = (":subagent:", ":acp:")


class NoSuchTarget(Exception):
    """A target names nothing that the run may reach. The text is for the model."""


@dataclass(frozen=True)
class Member:
    """One run of a conversation's trees. Times are microseconds since 1970, 0 for not yet."""

    run_id: str
    session_key: str
    customer_key: str
    parent_id: str = ""
    flow_id: str = ""
    label: str = ""
    queue: str = "agent"
    agent_id: str = ""
    state: State = "queued"
    epoch: int = 0
    depth: int = 0
    turn: int = 0
    requested_model: str = ""
    effective_model: str = ""
    tokens: int = 0
    tree_tokens: int = 0
    # Of the run and everything below it, in millionths of a US dollar.
    cost: int = 0
    unpriced: bool = False
    create_us: int = 0
    start_us: int = 0
    end_us: int = 0
    waits_for: str = ""
    error: str = ""
    trace_id: str = ""
    # Counted from 1 in the order of acceptance, so that a number stays what it is.
    number: int = 0

    @property
    def live(self) -> bool:
        """True until it has ended."""
        return self.state not in ENDED

    @property
    def model(self) -> str:
        """`requested → effective` when they differ, else the one model; empty when not known."""
        if self.requested_model and self.effective_model not in ("", self.requested_model):
            return f"{self.requested_model} → {self.effective_model}"
        return self.effective_model or self.requested_model


def is_below(session_key: str, ancestor_key: str) -> bool:
    """True when a session belongs to a descendant of a run of the other session."""
    return any(session_key.startswith(ancestor_key + kind) for kind in _BELOW)


def below(runs: Iterable[Member], own: Member, *, ended_after_us: int) -> list[Member]:
    """The runs that `own` may see, numbered from 1 in the order of acceptance.

    `runs` are whole trees of its session. Left out are trees of another customer or of a
    conversation before `/new`, and what ended before a time: that is archived, and leaves its
    number free.
    """
    found = {run.run_id: run for run in runs}
    roots = {run.flow_id: run for run in found.values() if run.depth == 0}

    def same_conversation(run: Member) -> bool:
        root = roots.get(run.flow_id)
        return own.depth > 0 or (root is not None and root.epoch == own.epoch)

    seen = sorted(
        (
            run
            for run in found.values()
            if is_below(run.session_key, own.session_key)
            and run.customer_key == own.customer_key
            and same_conversation(run)
        ),
        key=lambda run: run.run_id,
    )
    return [
        replace(run, number=number)
        for number, run in enumerate(seen, start=1)
        if run.live or not run.end_us or run.end_us >= ended_after_us
    ]


def ancestors(runs: Iterable[Member], own: Member) -> list[Member]:
    """The runs above `own`, nearest first."""
    by_id = {run.run_id: run for run in runs}
    found = []
    parent_id = own.parent_id
    while parent_id and (parent := by_id.get(parent_id)) is not None:
        found.append(parent)
        parent_id = parent.parent_id
    return found


def select(members: Sequence[Member], target: str) -> Member:
    """The one that a target names: a number, a label, a run id or its start, a session key.

    Raises `NoSuchTarget`, whose text says what there is.
    """
    wanted = target.strip()
    if not wanted:
        raise NoSuchTarget(f"`target` must name a sub-agent. {_there_are(members)}")
    number = wanted.removeprefix("#")
    if number.isascii() and number.isdigit() and len(number) < 6:
        for member in members:
            if member.number == int(number):
                return member
        raise NoSuchTarget(f"There is no sub-agent number {number}. {_there_are(members)}")
    folded = wanted.casefold()
    ways = (
        [m for m in members if wanted in (m.run_id, m.session_key)],
        [m for m in members if m.label.casefold() == folded],
        [m for m in members if len(wanted) >= LEAST_PREFIX and m.run_id.startswith(wanted.upper())],
        [m for m in members if m.label.casefold().startswith(folded)],
    )
    for found in ways:
        if len(found) == 1:
            return found[0]
        # Of several with one name those that still work are meant.
        live = [member for member in found if member.live]
        if len(live) == 1:
            return live[0]
        if found:
            raise NoSuchTarget(f"{wanted!r} names several: {_names(found)}. Use a number.")
    raise NoSuchTarget(f"There is no sub-agent {wanted!r} of yours. {_there_are(members)}")


def live_tops(members: Sequence[Member]) -> list[Member]:
    """The live ones that have no live one above them: stopping these stops all."""
    live = {member.run_id for member in members if member.live}
    return [m for m in members if m.run_id in live and m.parent_id not in live]


def names_own(target: str, own: Member) -> bool:
    """True when a target names the run or its conversation."""
    return target.strip() in (OWN, own.run_id, own.session_key)


def names_above(target: str, above: Sequence[Member], own: Member) -> bool:
    """True when a target names a run above `own`, however far."""
    wanted = target.strip()
    if not wanted:
        return False
    folded = wanted.casefold()
    return is_below(own.session_key, wanted) or any(
        wanted in (run.run_id, run.session_key)
        or (run.label and run.label.casefold() == folded)
        or (len(wanted) >= LEAST_PREFIX and run.run_id.startswith(wanted.upper()))
        for run in above
    )


def _there_are(members: Sequence[Member]) -> str:
    return f"There are: {_names(members)}." if members else "You have no sub-agents."


def _names(members: Sequence[Member], most: int = 12) -> str:
    shown = [f"{m.number} ({m.label or m.run_id})" for m in members[:most]]
    more = len(members) - most
    return ", ".join([*shown, f"and {more} more"] if more > 0 else shown)
