"""Which run people mean: by number of the list that they saw, by id, or by label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway_svc.domain.commands.problem import Problem
from svckit.words import joined, shorten

_SHORTEST_PIECE = 4
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run that may be meant. `live` ones are preferred where a label fits several."""

    run_id: str
    label: str
    live: bool


def find(
    typed: str,
    candidates: Sequence[Candidate],
    shown: Sequence[str],
    *,
    what: str,
    see: str,
    example: str,
) -> Candidate | Problem:
    """Return the run that `typed` names.

    A number counts in the list that was shown last, `shown`, so it means what its reader saw, also
    when others have come or gone since. After it come the run id, its beginning or end (four
    letters are enough), the whole label, and the beginning of a label. `what` and `see` name the
    kind of run and the command that lists them, `example` is a command with a good target.
    """
    by_id = {candidate.run_id: candidate for candidate in candidates}
    number = typed.removeprefix("#")
    if number.isascii() and number.isdigit() and len(number) <= 4:
        index = int(number)
        if 1 <= index <= len(shown):
            found = by_id.get(shown[index - 1])
            return found or Problem(f"{what} {number} is gone: `{see}` shows what there is now")
    for fitting in _fits(typed, candidates):
        if len(fitting) > 1:
            fitting = [candidate for candidate in fitting if candidate.live] or fitting
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            return _ambiguous(typed, fitting, shown, see, example)
    if not candidates:
        return Problem(f"there is no {what} here; `{see}` shows them")
    return Problem(
        f"no {what} is called “{shorten(typed, 40)}”: see `{see}`, then for example `{example}`"
    )


def _fits(typed: str, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return those that fit each rule, the strictest rule first."""
    piece, label = typed.upper(), " ".join(typed.split()).casefold()
    by_piece = [
        candidate
        for candidate in candidates
        if len(piece) >= _SHORTEST_PIECE
        and (candidate.run_id.startswith(piece) or candidate.run_id.endswith(piece))
    ]
    labels = [(" ".join(c.label.split()).casefold(), c) for c in candidates if c.label]
    return [
        [candidate for candidate in candidates if candidate.run_id == piece],
        by_piece,
        [candidate for name, candidate in labels if name == label],
        [candidate for name, candidate in labels if name.startswith(label)],
    ]


def _ambiguous(
    typed: str, fitting: Sequence[Candidate], shown: Sequence[str], see: str, example: str
) -> Problem:
    numbers = {run_id: number for number, run_id in enumerate(shown, start=1)}
    names = []
    for candidate in fitting[:_NAMED]:
        number = numbers.get(candidate.run_id)
        handle = f"#{number}" if number else f"…{candidate.run_id[-6:]}"
        names.append(f"{handle} {shorten(candidate.label, 32)}".rstrip())
    if len(fitting) > _NAMED:
        names.append("others")
    how = f"`{see}` numbers them, then for example `{example}`"
    return Problem(f"“{shorten(typed, 40)}” may be {joined(names, 'or')}: {how}")
