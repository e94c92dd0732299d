"""The verb `why`: why a run is where it is, and when it should start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from conveyor_client.cli.arguments import Json
from conveyor_client.cli.context import connect, run

if TYPE_CHECKING:
    from conveyor.scheduler.v1 import explain_pb2 as explain_pb
    from conveyor.scheduler.v1 import lane_pb2 as lane_pb


def why(
    context: typer.Context,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    json: Json = False,
) -> None:
    """Say why a run is where it is, and when it should start."""

    async def work() -> None:
        from conveyor_client.cli import output as out
        from conveyor_client.cli.traces import print_trace

        async with connect(context) as client:
            answer = await client.explain(run_id)
            if json:
                out.print_json(answer)
                return
            target = out.console()
            for line in lines(answer.explanation):
                target.print(line, soft_wrap=False)
            await print_trace(client, answer.explanation.run.trace)

    run(work())


def lines(told: explain_pb.RunExplanation) -> Iterator[str]:
    """Yield what is shown, as rich markup: short lines, for narrow terminals."""
    from conveyor_client.cli import output as out
    from conveyor_client.cli.places import place

    where = place(told.estimate)
    yield f"[bold]{out.plain(told.run.run_id)}[/] {out.state_markup(told.run.state)}" + (
        f" · {where}" if where else ""
    )
    for reason in told.reasons:
        yield f"• {out.plain(reason.text)}"
        yield from (f"    {line}" for line in _named(reason))
    if told.estimate.HasField("start_time"):
        yield f"[dim]{_basis(told.estimate)}[/]"


def _named(reason: explain_pb.RunReason) -> Iterator[str]:
    kind = reason.WhichOneof("reason")
    if kind == "behind_run":
        yield _ref(reason.behind_run.run)
    elif kind == "lane_busy":
        yield from map(_ref, reason.lane_busy.holders)
    elif kind == "waiting_for_children":
        yield from map(_ref, reason.waiting_for_children.live)
        if reason.waiting_for_children.live_count > len(reason.waiting_for_children.live):
            yield "…"
    elif kind == "stopping":
        yield from map(_ref, reason.stopping.unconfirmed)
    elif kind == "backing_off" and reason.backing_off.last_error.message:
        from conveyor_client.cli import output as out

        yield out.plain(reason.backing_off.last_error.message)


def _ref(ref: explain_pb.RunRef) -> str:
    from conveyor_client.cli import output as out

    # What the caller may not see is empty.
    name = out.plain(ref.label or ref.session_key)
    words = [out.plain(ref.run_id) or "another customer's run", out.state_word(ref.state), name]
    return " ".join(word for word in words if word)


def _basis(estimate: lane_pb.QueueEstimate) -> str:
    from conveyor.scheduler.v1 import lane_pb2
    from conveyor_client.cli.output import between, seconds
    from conveyor_client.cli.places import rough
    from svckit.words import span

    basis = estimate.basis
    late = between(estimate.as_of_time, estimate.start_time_p90)
    words = f"nine in ten start within {rough(late)}; " if late >= 1 else ""
    if basis.source == lane_pb2.ESTIMATE_SOURCE_MEASURED:
        turns = f"{basis.samples} turns measured, "
    else:
        turns = "too few turns measured, taken to last "
    return f"{words}{turns}{span(seconds(basis.turn_time_p50))}" + (
        f" (nine in ten: {span(seconds(basis.turn_time_p90))})" if basis.samples else ""
    )
