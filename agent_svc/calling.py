"""One model call of a turn: reserved, made, priced and reported.

Whatever a turn asks a model goes through here, its replies and its summaries alike: a call that is
not reserved breaks a limit, one that is not reported breaks a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from agent_svc import convert
from agent_svc.domain.prompt import Prompt
from agent_svc.domain.served import same_model
from agent_svc.domain.steps import Usage
from agent_svc.models import asking
from agent_svc.models.base import CallFailed, ModelReply, full_name
from agent_svc.reserving import MustWait, Reserver
from agent_svc.work import Work
from svckit.clock import Clock
from svckit.errors import (
    BudgetExceeded,
    ModelRejected,
    ModelUnavailable,
    ServiceError,
    TurnFailed,
)
from svckit.logging import get_logger
from svckit.turn import Fail, Outcome, Suspend
from svckit.usage import UsageReporter

_log = get_logger("agent.calling")


@dataclass(frozen=True)
class Bill:
    """Who was asked, who answered, and what it took. Models are named as `provider:model`."""

    requested_model: str
    effective_model: str
    usage: Usage
    # The reservation that the report settles; empty without one.
    reservation: str
    # Why the requested model was passed over; empty when it was not.
    passed_over: str = ""


@dataclass(frozen=True)
class Answer:
    """A reply, and what is reported about it once it is stored."""

    reply: ModelReply
    bill: Bill


class NoAnswer(Exception):
    """The turn ends without a reply. `failed` is set when that is because the model failed."""

    def __init__(self, outcome: Outcome, failed: CallFailed | None = None) -> None:
        super().__init__("no answer")
        self.outcome = outcome
        self.failed = failed


class Caller:
    """Makes the model calls of turns."""

    def __init__(self, reserver: Reserver, usage: UsageReporter, clock: Clock) -> None:
        self._reserver = reserver
        self._usage = usage
        self._clock = clock

    async def ask(
        self, work: Work, call: str, prompt: Prompt, on_text: Callable[[str], None]
    ) -> Answer:
        """Ask the models of the run, in order, and price the answer. Raises `NoAnswer`.

        `call` names it among the calls of the turn, the same in every attempt: the number of the
        step that its reply becomes, for example.
        """
        requested = work.requested_model
        tickets = self._reserver.tickets(work, call, prompt)
        names = [full_name(model) for model in work.models]
        # A fallback that the turn resumed for is next: those before it have failed already.
        skip = names.index(tickets.resumed_for) if tickets.resumed_for in names else 0

        async def note_failure(failed: asking.FailedCall) -> None:
            await self._note_failure(work, call, failed)

        with work.spans.calls(prompt, call) as spans:
            watch = work.counts.beside(spans)
            try:
                asked = await asking.ask(
                    work.models[skip:],
                    prompt,
                    on_text,
                    clock=self._clock,
                    take=tickets.take,
                    on_failure=note_failure,
                    watch=watch,
                )
            except MustWait as wait:
                work.counts.waits_for_limit(requested)
                raise NoAnswer(Suspend(wait.suspension(work))) from None
            except BudgetExceeded as refused:
                raise NoAnswer(Fail(refused, retryable=False, taken=work.taken())) from None
            except CallFailed as failed:
                retryable = isinstance(failed.error, ModelUnavailable)
                end = Fail(failed.error, retryable=retryable, taken=work.taken())
                raise NoAnswer(end, failed) from None
            cost = await self._reserver.cost(asked.model, asked.reply.usage)
            watch.priced(cost)
        usage = msgspec.structs.replace(asked.reply.usage, cost=cost)
        effective = full_name(asked.model)
        if not same_model(asked.model.name, asked.reply.served):
            effective = f"{asked.model.provider_id}:{asked.reply.served}"
        if full_name(asked.model) != requested:
            work.counts.fell_back(requested, full_name(asked.model))
        # A turn that waited for a fallback does not know any more why those before it failed.
        passed_over = asked.passed_over or ("earlier" if skip else "")
        bill = Bill(requested, effective, usage, asked.reservation_id, passed_over)
        if work.exact_model and effective != requested:
            # Paid all the same. Without a fallback to ask it is the provider that chose another.
            await self.report(work, call, bill)
            error = ModelRejected(
                f"{requested} was asked for and {effective} answered; strict_model takes no other",
                metadata={"providerId": asked.model.provider_id, "model": requested},
            )
            raise NoAnswer(Fail(error, retryable=False, taken=work.taken()))
        return Answer(asked.reply, bill)

    async def report(self, work: Work, call: str, bill: Bill) -> None:
        """Report a call whose answer is stored; repeating it does no harm.

        A cap that it passed is left in `work.over_budget`.
        """
        # A demo model has no provider to name: its own name stands for both.
        provider, _, model = bill.effective_model.partition(":")
        try:
            await self._usage.answered(
                f"{work.run_id}/{work.number}.{call}",
                work.run_id,
                provider,
                model,
                convert.usage_to_proto(bill.usage),
                bill.reservation,
                bill.requested_model,
            )
        except ServiceError as err:
            work.over_budget = err

    async def _note_failure(self, work: Work, call: str, failed: asking.FailedCall) -> None:
        if isinstance(failed.failure.error, TurnFailed):
            return  # told to fail: no provider is to blame
        fencing = work.turn.leased.lease.fencing_token
        _log.warning(
            "model call failed",
            model=full_name(failed.model),
            reason=failed.failure.error.reason,
            problem=failed.failure.error.message,
        )
        await self._usage.failed(
            f"{work.run_id}/{work.number}.{call}/{fencing}.{failed.number}",
            work.run_id,
            failed.model,
            failed.failure.outcome,
            failed.failure.retry_after,
            failed.reservation_id,
        )
