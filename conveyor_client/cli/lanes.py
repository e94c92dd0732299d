"""Verbs about lanes: list, set a limit."""

from __future__ import annotations

from typing import Annotated

import typer

from conveyor_client.cli.arguments import Json
from conveyor_client.cli.context import CannotRun, connect, run
from conveyor_client.cli.manual import Verbs

lanes_app = Verbs(invoke_without_command=True, help="Lanes and their use; `set` a limit.")


@lanes_app.callback()
def lanes(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Session lanes too.")] = False,
    json: Json = False,
) -> None:
    """List the lanes with their use."""
    if context.invoked_subcommand:
        return

    async def work() -> None:
        from conveyor.scheduler.v1 import lane_pb2
        from conveyor_client.cli import output as out

        kind = lane_pb2.LANE_KIND_UNSPECIFIED if everything else lane_pb2.LANE_KIND_GLOBAL
        async with connect(context) as client:
            found = await client.lanes(kind, page_size=500)
            out.print_page(
                found,
                ("LANE", "LIMIT", "RUNNING", "WAITING", "CUSTOMERS", "SUSPENDED"),
                (
                    (
                        out.plain(ln.name),
                        _limit(ln.limit, ln.configured_limit),
                        str(ln.running),
                        str(ln.waiting),
                        str(ln.waiting_customers),
                        str(ln.suspended),
                    )
                    for ln in found.lanes
                ),
                "No lanes.",
                json=json,
            )

    run(work())


def _limit(limit: int, configured: int) -> str:
    words = "paused" if limit == 0 else str(limit)
    return words if limit == configured else f"{words} (configured {configured})"


@lanes_app.command("set")
def lanes_set(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a global lane.")],
    limit: Annotated[
        int | None, typer.Option(help="New limit; 0 pauses the lane.", min=0, max=1_000_000)
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Back to the configured limit.")] = False,
    json: Json = False,
) -> None:
    """Change the limit of a global lane, now and after restarts."""
    if reset == (limit is not None):
        raise CannotRun("give either --limit N or --reset", 2)

    async def work() -> None:
        from conveyor_client.cli import output as out

        async with connect(context) as client:
            answer = await client.update_lane(name, None if reset else limit)
            if json:
                out.print_json(answer)
            else:
                lane = answer.lane
                print(f"lane {lane.name}: limit {_limit(lane.limit, lane.configured_limit)}")

    run(work())
