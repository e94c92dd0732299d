"""Flow budgets in tokens and money: nested caps, reserved before a model call and settled after it.

A reservation must fit the run's own cap and every ancestor's, so that children at work side by side
cannot overspend: settled + reserved <= cap at every grant. A share of a run's cap, `reply_reserve`,
is out of reach for its descendants, so that it can still answer. What a call really used may pass
its reservation, never another's: the overshoot is the error of an estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.records import Failure, Run
from svckit.errors import BudgetExceeded


def ancestors(k: Kernel, run: Run) -> Iterator[Run]:
    """The parent, its parent, … up to the root. All of them are unfinished while `run` is."""
    while run.parent_id:
        run = k.runs.get(run.parent_id) or k.ended[run.parent_id]
        yield run


def capped(k: Kernel, run: Run) -> bool:
    """True when tokens or cost of the run or of an ancestor are capped."""
    return run.caps.spending or any(node.caps.spending for node in ancestors(k, run))


def path(k: Kernel, run: Run) -> list[str]:
    """The runs whose budgets a reservation of the run counts against."""
    return [node.run_id for node in (run, *ancestors(k, run))] if capped(k, run) else []


def refusal(k: Kernel, run: Run, tokens: int, cost: int) -> BudgetExceeded | None:
    """Which cap a reservation would pass; `None` when it fits."""
    for node in (run, *ancestors(k, run)):
        caps = node.caps
        kept = 0.0 if node is run else caps.reply_reserve or 0.0
        held_tokens, held_cost = k.limits.held(node.run_id)
        used = node.tree_usage
        for name, cap, before, more in (
            ("max_tokens", caps.max_tokens, used.tokens + held_tokens, tokens),
            ("max_cost_micros_usd", caps.max_cost, used.cost_micros_usd + held_cost, cost),
        ):
            if cap is not None and before + more > cap - int(cap * kept):
                return exceeded(node, name, cap - int(cap * kept), before, more)
    return None


def overspent(k: Kernel, run: Run) -> BudgetExceeded | None:
    """Which cap is passed by what was used already; `None` when none is."""
    for node in (run, *ancestors(k, run)):
        caps, used = node.caps, node.tree_usage
        for name, cap, spent in (
            ("max_tokens", caps.max_tokens, used.tokens),
            ("max_cost_micros_usd", caps.max_cost, used.cost_micros_usd),
        ):
            if cap is not None and spent > cap:
                return exceeded(node, name, cap, spent, 0)
    return None


_WORDS = {
    "max_tokens": "the budget of {limit} tokens of run {run} has {used} used or reserved; "
    "{more} more do not fit",
    "max_cost_micros_usd": "the budget of {limit} millionths of a US dollar of run {run} has "
    "{used} used or reserved; {more} more do not fit",
    "max_wall_time": "run {run} was to end within {limit} s of its first start",
}


def exceeded(run: Run, budget: str, limit: int, used: int, requested: int) -> BudgetExceeded:
    """The refusal, which names the budget and whose it is."""
    words = _WORDS.get(budget, "a new run would pass " + budget + " = {limit} of run {run}")
    message = words.format(limit=limit, run=run.run_id, used=used, more=requested)
    if budget in ("max_tokens", "max_cost_micros_usd") and not requested:
        message = message.partition(";")[0]
    return BudgetExceeded(
        message,
        metadata={
            "budget": budget,
            "limit": str(limit),
            "used": str(used),
            "requested": str(requested),
            "runId": run.run_id,
        },
    )


def too_long(run: Run, now: int) -> Failure:
    """Why a tree ends whose wall time is over."""
    limit = (run.caps.max_wall or 0) // 1_000_000
    error = exceeded(run, "max_wall_time", limit, (now - run.start_time) // 1_000_000, 0)
    return Failure(error.reason, error.message, dict(error.metadata))


def hold(k: Kernel, runs: Sequence[str], tokens: int, cost: int) -> None:
    """Keeps room in the budgets of these runs, or, with negative figures, gives it back."""
    for run_id in runs:
        k.limits.hold(run_id, tokens, cost)
