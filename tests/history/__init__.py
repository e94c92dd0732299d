"""The history checker: what a store holds after a test, checked against the scheduler's invariants.

    history = await of_store(store)            # or of_sqlite(path), while the scheduler runs
    history.finished = True                    # faults have stopped: everything must have ended
    history.accepted = {request_id: run_id}    # what clients were told
    assert_holds(history)                      # raises with every violation and the run's story

It is pure: it knows the contract's messages and nothing of the code it judges.
"""

from tests.history.check import assert_holds, check
from tests.history.model import History, Limits, RunRow, Totals, Violation
from tests.history.sources import of_sqlite, of_store, row_of

__all__ = [
    "History",
    "Limits",
    "RunRow",
    "Totals",
    "Violation",
    "assert_holds",
    "check",
    "of_sqlite",
    "of_store",
    "row_of",
]
