"""Verbs about spawn trees."""

from __future__ import annotations

from typing import Annotated

import typer

from conveyor_client.cli.arguments import Json, Limit, Page, States
from conveyor_client.cli.context import connect, run
from conveyor_client.cli.manual import Verbs

flow_app = Verbs(no_args_is_help=True, help="Spawn trees: list, show, cancel.")


@flow_app.command("list")
def flow_list(
    context: typer.Context,
    session: Annotated[str, typer.Option(help="Only of this session.")] = "",
    customer: Annotated[str, typer.Option(help="Only of this customer.")] = "",
    state: States = None,
    with_children: Annotated[
        bool, typer.Option("--with-children", help="Only those that spawned something.")
    ] = False,
    limit: Limit = 50,
    page: Page = "",
    json: Json = False,
) -> None:
    """List spawn trees, newest first."""

    async def work() -> None:
        from conveyor.scheduler.v1 import flow_service_pb2, run_pb2
        from conveyor_client.cli import output as out

        wanted = flow_service_pb2.FlowFilter(
            session_key=session,
            customer_key=customer,
            with_children=with_children,
            states=[run_pb2.RunState.Value(f"RUN_STATE_{s.name}") for s in state or ()],
        )
        async with connect(context) as client:
            found = await client.flows(wanted, page_size=limit, page_token=page)
            out.print_page(
                found,
                ("FLOW", "STATE", "RUNS", "SESSION", "TOKENS", "ACCEPTED"),
                (
                    (
                        f.flow_id,
                        out.state_markup(f.state),
                        str(sum(c.runs for c in f.state_counts)),
                        out.plain(f.session_key),
                        out.tokens(f.usage),
                        out.when(f.timing.create_time),
                    )
                    for f in found.flows
                ),
                "No flows.",
                json=json,
                whole="FLOW",
                give_way=("TOKENS", "ACCEPTED", "RUNS"),
            )

    run(work())


@flow_app.command("show")
def flow_show(
    context: typer.Context,
    flow_id: Annotated[str, typer.Argument(metavar="FLOW", help="Id of the flow.")],
    json: Json = False,
) -> None:
    """Show a spawn tree with states, times and tokens."""

    async def work() -> None:
        from conveyor_client.cli import output as out
        from conveyor_client.cli.traces import print_trace
        from conveyor_client.cli.tree import flow_tree

        async with connect(context) as client:
            answer = await client.flow(flow_id)
            if json:
                out.print_json(answer)
                return
            out.console().print(flow_tree(answer))
            for root in answer.nodes[:1]:
                await print_trace(client, root.trace)

    run(work())


@flow_app.command("cancel")
def flow_cancel(
    context: typer.Context,
    flow_id: Annotated[str, typer.Argument(metavar="FLOW", help="Id of the flow.")],
    reason: Annotated[str, typer.Option(help="Shown to the customer.")] = "",
    json: Json = False,
) -> None:
    """Stop every run of a spawn tree."""

    async def work() -> None:
        from conveyor_client.cli import output as out

        async with connect(context) as client:
            answer = await client.cancel_flow(flow_id, reason=reason)
            if json:
                out.print_json(answer)
            else:
                print(
                    f"flow {answer.flow.flow_id} {out.state_word(answer.flow.state)}, "
                    f"{answer.affected_runs} runs stopped"
                )

    run(work())
