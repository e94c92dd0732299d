"""Verbs that look into the suite or change one thing in it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from conveyor_client.cli.context import CannotRun, connect, run

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option(help="At most this many.", min=1, max=500)]
Page = Annotated[str, typer.Option(help="Token of the page, from the answer before.")]

lanes_app = typer.Typer(invoke_without_command=True, help="Lanes and their use; `set` a limit.")
model_app = typer.Typer(no_args_is_help=True, help="Models: list, probe.")


class StateName(StrEnum):
    """States of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    SUSPENDED = "suspended"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


States = Annotated[
    list[StateName] | None, typer.Option("--state", help="Only this state. May be repeated.")
]


def sessions(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="Show the messages of this session.")] = "",
    reset: Annotated[bool, typer.Option("--reset", help="Make the session forget.")] = False,
    limit: Limit = 50,
    page: Page = "",
    json: Json = False,
) -> None:
    """List sessions, or show the messages of one."""
    if reset and not key:
        raise CannotRun("--reset needs the key of a session", 2)

    async def work() -> None:
        from conveyor_client.cli import output as out

        async with connect(context) as client:
            if reset:
                forgotten = await client.reset(key)
                if json:
                    out.print_json(forgotten)
                else:
                    print(f"forgot {forgotten.forgotten_messages} messages")
                return
            if key:
                messages = await client.messages(key, page_size=limit, page_token=page)
                if json:
                    out.print_json(messages)
                    return
                names = {1: "user", 2: "agent", 3: "system"}
                target = out.console()
                for message in messages.messages:
                    target.print(
                        f"[bold]{names.get(message.role, '?')}[/] "
                        f"[dim]{out.when(message.create_time)}[/]"
                    )
                    target.print(out.plain(out.text_of(message)))
                more(messages.next_page_token)
                return
            found = await client.sessions(page_size=limit, page_token=page)
            if json:
                out.print_json(found)
                return
            out.print_table(
                ("SESSION", "AGENT", "CUSTOMER", "AT WORK", "WAITING", "ACTIVE"),
                (
                    (
                        out.plain(s.session_key),
                        out.plain(s.agent_id),
                        out.plain(s.customer_key),
                        out.plain(s.run_id) or "-",
                        str(s.waiting),
                        out.when(s.active_time),
                    )
                    for s in found.sessions
                ),
                "No sessions yet.",
                whole="AT WORK",
                give_way=("CUSTOMER", "AGENT", "ACTIVE"),
            )
            more(found.next_page_token)

    run(work())


def runs(
    context: typer.Context,
    run_id: Annotated[str, typer.Argument(metavar="[RUN]", help="Show this run.")] = "",
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
                return
            wanted = run_pb2.RunFilter(
                session_key=session,
                flow_id=flow,
                customer_key=customer,
                global_lane=lane,
                states=[run_pb2.RunState.Value(f"RUN_STATE_{s.name}") for s in state or ()],
            )
            found = await client.runs(wanted, page_size=limit, page_token=page)
            if json:
                out.print_json(found)
                return
            out.print_table(
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
                whole="RUN",
                give_way=("ACCEPTED", "LANE", "LABEL"),
            )
            more(found.next_page_token)

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
            if json:
                out.print_json(found)
                return
            out.print_table(
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
            )
            more(found.next_page_token)

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


def agents(context: typer.Context, json: Json = False) -> None:
    """List the configured agents."""

    async def work() -> None:
        from conveyor_client.cli import output as out

        async with connect(context) as client:
            found = await client.agents(page_size=500)
            if json:
                out.print_json(found)
                return
            out.print_table(
                ("AGENT", "MODEL", "FALLBACKS", "TOOLS", "MAY SPAWN"),
                (
                    (
                        out.plain(a.agent_id),
                        out.plain(a.model),
                        out.plain(", ".join(a.fallback_models)) or "-",
                        out.plain(", ".join(a.tools)) or "-",
                        out.plain(", ".join(a.spawnable_agent_ids)) or "-",
                    )
                    for a in found.agents
                ),
                "No agents.",
            )

    run(work())


@model_app.command("list")
def model_list(context: typer.Context, json: Json = False) -> None:
    """List the configured models."""

    async def work() -> None:
        from conveyor.agent.v1 import probe_pb2
        from conveyor_client.cli import output as out

        async with connect(context) as client:
            found = await client.models(page_size=500)
            if json:
                out.print_json(found)
                return
            out.print_table(
                ("MODEL", "BASE URL", "CONTEXT", "AGENTS", "DELEGATES"),
                (
                    (
                        out.plain(m.model),
                        out.plain(m.base_url) or "-",
                        f"{m.context_tokens:,}" if m.context_tokens else "-",
                        out.plain(", ".join(m.agent_ids)) or "-",
                        probe_pb2.ProbeVerdict.Name(m.probe.verdict)
                        .removeprefix("PROBE_VERDICT_")
                        .lower()
                        .replace("_", "-")
                        if m.HasField("probe")
                        else "never probed",
                    )
                    for m in found.models
                ),
                "No models.",
            )

    run(work())


def more(token: str) -> None:
    """Say how to get the next page, if there is one."""
    if token:
        print(f"more: --page {token}")
