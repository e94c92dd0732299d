"""Which coding agent people mean: the one that is bound, a name, a number, or the only one."""

from __future__ import annotations

from collections.abc import Sequence

from conveyor.acp.v1 import session_pb2 as acp
from gateway_svc.domain.commands import options, targets
from gateway_svc.domain.commands.acp_words import full_name, live, name_of
from gateway_svc.domain.commands.problem import Problem, cut
from svckit.words import joined

SEE = "/acp sessions"
NONE_OPEN = (
    "no coding agent is open here: start one, for example "
    "`/acp spawn claude --bind here fix the failing test`"
)
_NAMED = 6


def pick(
    typed: str,
    sessions: Sequence[acp.AcpSession],
    shown: Sequence[str],
    bound_id: str,
    example: str,
) -> acp.AcpSession | Problem:
    """Return the session that a command is about.

    `typed` names one of `sessions` by its number in the list that was `shown`, by its id or a piece
    of it, or by its label, else its harness. Empty means the one that `bound_id` names, or else the
    only one that is open. `example` is a command with a good target.
    """
    if not typed:
        return _meant(sessions, bound_id, shown, example)
    found = targets.find(
        typed,
        [targets.Candidate(s.acp_session_id, name_of(s), live(s)) for s in sessions],
        shown or [s.acp_session_id for s in sessions],
        what="coding agent",
        see=SEE,
        example=example,
    )
    if isinstance(found, Problem):
        return found
    return next(s for s in sessions if s.acp_session_id == found.run_id)


def pick_and_tell(
    message: str,
    sessions: Sequence[acp.AcpSession],
    shown: Sequence[str],
    bound_id: str,
    example: str,
) -> tuple[acp.AcpSession, str] | Problem:
    """Return who is told what by `[target] <message>`.

    A number with its mark (`#2`) is always a target. Any other first word is one where somebody has
    to be named, or where it is the whole name of the only one that is open; in a bound conversation
    it belongs to the message, whatever it says.
    """
    first, after = options.phrase(message)
    if not first:
        first, after, *_ = *message.split(maxsplit=1), ""
    after = after.strip()
    open_ones = [session for session in sessions if live(session)]
    marked = first.startswith("#") and first[1:].isdigit()
    if not (marked or _names_somebody(first, open_ones, bound_id)):
        found = pick("", sessions, shown, bound_id, example)
        return found if isinstance(found, Problem) else (found, message)
    found = pick(first, sessions, shown, bound_id, example)
    if isinstance(found, Problem):
        return found if marked else _which(open_ones, shown, example)
    if not after:
        return Problem(f"what shall {name_of(found)} be told? For example `{example}`")
    return found, after


def _names_somebody(first: str, open_ones: Sequence[acp.AcpSession], bound_id: str) -> bool:
    if any(session.acp_session_id == bound_id for session in open_ones):
        return False
    if len(open_ones) == 1:
        return first.casefold() == name_of(open_ones[0]).casefold()
    return bool(open_ones)


def _meant(
    sessions: Sequence[acp.AcpSession], bound_id: str, shown: Sequence[str], example: str
) -> acp.AcpSession | Problem:
    for session in sessions:
        if bound_id and session.acp_session_id == bound_id:
            return session
    open_ones = [session for session in sessions if live(session)]
    if len(open_ones) == 1:
        return open_ones[0]
    return _which(open_ones, shown, example) if open_ones else Problem(NONE_OPEN)


def _which(open_ones: Sequence[acp.AcpSession], shown: Sequence[str], example: str) -> Problem:
    numbers = {session_id: number for number, session_id in enumerate(shown, start=1)}
    names = []
    for session in open_ones[:_NAMED]:
        number = numbers.get(session.acp_session_id)
        handle = f"#{number}" if number else f"…{session.acp_session_id[-6:]}"
        names.append(f"{handle} {cut(full_name(session))}")
    if len(open_ones) > _NAMED:
        names.append("others")
    return Problem(f"which one? There is {joined(names)}: say for example `{example}`")
