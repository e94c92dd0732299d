"""How questions stand in a table. The same in every database: see `CREATE TABLE questions`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from scheduler_svc.domain.questions import Question
from scheduler_svc.store.base import Batch, QuestionQuery

_encode = msgspec.json.Encoder().encode

FILTERS = ("question_id", "run_id", "session_key", "root_session_key", "customer_key")
"""Columns, and fields of `QuestionQuery`, that are compared as they are."""


def asked(batch: Batch) -> Iterator[tuple[object, ...]]:
    """Yield the rows of questions that are new, in the order of the columns."""
    for q in batch.questions:
        if (data := batch.question_data.get(q.question_id)) is not None:
            yield (
                q.order,
                q.question_id,
                q.run_id,
                q.session_key,
                q.root_session_key,
                q.customer_key,
                int(q.state),
                q.close_time,
                _record(q),
                data,
            )


def closed(batch: Batch) -> Iterator[tuple[str, int, int, str]]:
    """Yield id, state, close time and record of questions whose rows are there already."""
    for q in batch.questions:
        if q.question_id not in batch.question_data:
            yield q.question_id, int(q.state), q.close_time, _record(q)


def of_states(query: QuestionQuery) -> list[str]:
    """Return the condition on the state, as a list of none or one.

    With constants, so that the index of open ones is seen to fit.
    """
    states = sorted(query.states)
    if not states:
        return []
    if len(states) == 1:
        return [f"state = {int(states[0])}"]
    return [f"state IN ({', '.join(str(int(state)) for state in states)})"]


def _record(question: Question) -> str:
    return _encode(question).decode()
