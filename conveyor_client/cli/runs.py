"""Verbs about single runs: list, show, cancel, steer."""

from __future__ import annotations

from typing import Annotated

import typer

from conveyor_client.cli.arguments import Json, Limit, Page, States
from conveyor_client.cli.context import connect, run


def runs(
    context: typer.Context,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Show this run.")] = "",
    session: Annotated[str, typer.Option(help="Only of this session.")] = "",
    flow: Annotated[str, typer.Option(help="Only of this spawn tree.")] = "",
    customer: Annotated[str, typer.Option(help="Only of this customer.")] = "",
    lane: Annotated[str, typer.Option(help="Only of this global lane.")] = "",
    state: States = None,
    limit: Limit = 50,
    page: Page = "",
    json: Json = False,
) -> None:
    """List runs, newest first, or show one."""

    async def work() -> None:
        from conveyor.scheduler.v1 import run_pb2
        from conveyor_client.cli import output as out
        from conveyor_client.cli.traces import print_trace
        from conveyor_client.cli.tree import node_line

        async with connect(context) as client:
            if run_id:
                one = await client.run(run_id)
                if json:
                    out.print_json(one)
                    return
                target = out.console()
                target.print(node_line(one.run))
                for input_ in one.run.inputs:
                    target.print(f"[bold]asked[/] {out.plain(out.text_of(input_.message))}")
                if one.run.result.HasField("reply"):
                    target.print(f"[bold]said[/] {out.plain(out.text_of(one.run.result.reply))}")
                await print_trace(client, one.run.trace)
                return
            wanted = run_pb2.RunFilter(
                session_key=session,
                flow_id=flow,
                customer_key=customer,
                global_lane=lane,
                states=[run_pb2.RunState.Value(f"RUN_STATE_{s.name}") for s in state or ()],
            )
            found = await client.runs(wanted, page_size=limit, page_token=page)
            out.print_page(
                found,
                ("RUN", "STATE", "LANE", "SESSION", "LABEL", "ACCEPTED"),
                (
                    (
                        r.run_id,
                        out.state_markup(r.state),
                        out.plain(r.spec.global_lane),
                        out.plain(r.spec.session_key),
                        out.plain(r.spec.label) or "-",
                        out.when(r.timing.create_time),
                    )
                    for r in found.runs
                ),
                "No runs.",
                json=json,
                whole="RUN",
                give_way=("ACCEPTED", "LANE", "LABEL"),
            )

    run(work())


def cancel(
    context: typer.Context,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    reason: Annotated[str, typer.Option(help="Shown to the customer.")] = "",
    json: Json = False,
) -> None:
    """Stop a run and everything it spawned."""

    async def work() -> None:
        from conveyor_client.cli import output as out

        async with connect(context) as client:
            answer = await client.cancel(run_id, reason=reason)
            if json:
                out.print_json(answer)
            else:
                print(
                    f"run {answer.run.run_id} {out.state_word(answer.run.state)}, "
                    f"{answer.affected_runs} runs stopped"
                )

    run(work())


def steer(
    context: typer.Context,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    text: Annotated[str, typer.Argument(help="The message.")],
    json: Json = False,
) -> None:
    """Give a message to a run that executes or waits for children."""

    async def work() -> None:
        from conveyor_client.cli import output as out

        async with connect(context) as client:
            answer = await client.steer(run_id, text)
            if json:
                out.print_json(answer)
            else:
                print(f"run {answer.run.run_id} {out.state_word(answer.run.state)}: handed over")

    run(work())
