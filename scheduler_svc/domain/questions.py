"""Questions that wait for people: what is known of each, and which are open.

Here are the facts; `asking` does what follows from them for runs. In memory are open questions
only, without their arguments. Closed ones are rows of the store, and go with the request ids.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from scheduler_svc.domain.records import SECOND

# A run may have as many open as one wait may name.
MOST_OPEN = 32
LEAST_TIMEOUT, MOST_TIMEOUT = 10 * SECOND, 24 * 3600 * SECOND
DEFAULT_TIMEOUT = 300 * SECOND


class QuestionState(enum.IntEnum):
    """Where a question is in its life. Numbers of the contract; all but `OPEN` are terminal."""

    OPEN = 1
    ANSWERED = 2
    EXPIRED = 3
    CANCELLED = 4


class Option(msgspec.Struct, frozen=True, array_like=True):
    """One possible answer: its id, and its name for people."""

    option_id: str
    name: str


class Question(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What decisions need of a question. The whole of it is in the store."""

    # -- As asked ---------------------------------------------------------------------------------
    question_id: str
    title: str
    options: list[Option]
    # Taken when nobody answers in time; empty means that it is rejected.
    default: str = ""
    timeout: int = DEFAULT_TIMEOUT

    # -- Given when it is stored ------------------------------------------------------------------
    # Position of its event: grows, and is unique.
    order: int = 0
    # What people call it by, see `OpenQuestions.next_number` and `Run.question_number`.
    number: int = 0
    run_id: str = ""
    flow_id: str = ""
    session_key: str = ""
    root_session_key: str = ""
    customer_key: str = ""
    create_time: int = 0
    expire_time: int = 0

    # -- Life -------------------------------------------------------------------------------------
    state: QuestionState = QuestionState.OPEN
    option_id: str = ""
    responder: str = ""
    close_time: int = 0

    @property
    def open(self) -> bool:
        """True while it waits for an answer."""
        return self.state is QuestionState.OPEN

    def offers(self, option_id: str) -> bool:
        """True for the id of one of its options."""
        return any(option.option_id == option_id for option in self.options)

    @property
    def option_name(self) -> str:
        """Name of the option that was taken; empty when none was."""
        return next((o.name for o in self.options if o.option_id == self.option_id), "")

    def close(self, state: QuestionState, now: int, *, option: str = "", by: str = "") -> None:
        """Closes it. Once: a closed question never changes again."""
        if not self.open:  # pragma: no cover - a bug in the caller
            raise AssertionError(self.question_id, self.state)
        self.state, self.close_time = state, now
        self.option_id, self.responder = option, by


class OpenQuestions:
    """All open questions. One per kernel."""

    def __init__(self) -> None:
        self._by_id: dict[str, Question] = {}
        self._by_order: dict[int, Question] = {}
        # Session of the root -> its open questions, oldest first.
        self._by_root: dict[str, dict[str, Question]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Question]:
        return iter(self._by_id.values())

    def get(self, question_id: str) -> Question | None:
        """An open question; `None` for one that is closed or unknown."""
        return self._by_id.get(question_id)

    def at(self, order: int) -> Question | None:
        """The open question with this order."""
        return self._by_order.get(order)

    def of_tree(self, root_session_key: str, flow_id: str) -> list[Question]:
        """What the runs of a spawn tree ask, oldest first."""
        asked = self._by_root.get(root_session_key, {})
        return [question for question in asked.values() if question.flow_id == flow_id]

    def add(self, question: Question) -> None:
        """Takes in one that is open."""
        self._by_id[question.question_id] = self._by_order[question.order] = question
        self._by_root.setdefault(question.root_session_key, {})[question.question_id] = question

    def remove(self, question: Question) -> None:
        """Forgets one that was closed."""
        del self._by_id[question.question_id], self._by_order[question.order]
        of_root = self._by_root[question.root_session_key]
        del of_root[question.question_id]
        if not of_root:
            del self._by_root[question.root_session_key]

    def next_number(self, root_session_key: str) -> int:
        """The least number of a new question in a conversation: above those of all that are open.

        So a number that somebody was told never comes to mean another question while it is open.
        Within a spawn tree it never does: see `Run.question_number`.
        """
        numbers = (q.number for q in self._by_root.get(root_session_key, {}).values())
        return max(numbers, default=0) + 1
