"""Verbs that talk: `send`, `chat` and `watch`."""

from __future__ import annotations

import sys
from contextlib import aclosing
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from conveyor_client.cli.context import CannotRun, connect, run

if TYPE_CHECKING:
    import asyncio

    from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
    from conveyor.scheduler.v1 import lane_pb2 as lane_pb
    from conveyor_client.cli.printer import Printer
    from conveyor_client.client import ConveyorClient

Session = Annotated[str, typer.Option(help="Session key. Default: your own with the agent.")]
Agent = Annotated[str, typer.Option(help="Agent that answers. Default: as the routes say.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document per line.")]


class QueueModeName(StrEnum):
    """What a message does when the session is busy."""

    FOLLOWUP = "followup"
    COLLECT = "collect"
    STEER = "steer"
    INTERRUPT = "interrupt"


Queue = Annotated[
    QueueModeName | None,
    typer.Option("--queue-mode", help="When the session is busy. Default: as configured."),
]


def send(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="The message; - reads standard input.")],
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it is answered.")] = False,
    session: Session = "",
    agent: Agent = "",
    customer: Annotated[str, typer.Option(help="Customer it is for. Default: yourself.")] = "",
    queue_mode: Queue = None,
    priority: Annotated[int, typer.Option(help="Seconds added to its waiting time.")] = 0,
    request_id: Annotated[
        str | None, typer.Option(help="Sending again with the same id does it once.")
    ] = None,
    json: Json = False,
) -> None:
    """Send a message. With --wait, print what happens; exit 1 when the run failed."""
    message = sys.stdin.read() if text == "-" else text

    async def work() -> bool:
        from conveyor_client.cli.output import print_json, printable, state_word, text_of
        from conveyor_client.cli.places import fate, place

        async with connect(context) as client:
            if wait:
                stream = client.chat(
                    message,
                    session_key=session,
                    agent_id=agent,
                    customer_key=customer,
                    queue_mode=mode_of(queue_mode),
                    priority=priority,
                    request_id=request_id,
                )
                return await _follow(stream, json=json)
            answer = await client.send(
                message,
                session_key=session,
                agent_id=agent,
                customer_key=customer,
                queue_mode=mode_of(queue_mode),
                priority=priority,
                request_id=request_id,
            )
            if json:
                print_json(answer)
            else:
                accepted = answer.accepted
                if not accepted.run.run_id:  # a command: it has been answered
                    print(printable(text_of(accepted.run.result.reply)))
                    return True
                print(f"run {accepted.run.run_id} {state_word(accepted.run.state)}")
                print(f"session {accepted.run.spec.session_key}")
                if words := fate(accepted.outcome, accepted.estimate):
                    print(words)
                if where := place(accepted.estimate):
                    print(where)
            return True

    if not run(work()):
        raise typer.Exit(1)


async def _follow(stream: AsyncChat, *, json: bool, live: bool = False) -> bool:
    """Show a chat until its run ended; True when it succeeded."""
    from conveyor_client.cli.following import show_until_ended
    from conveyor_client.cli.narrate import Narrator
    from conveyor_client.cli.printer import printer

    return await show_until_ended(stream, Narrator(live=live), printer(), json=json)


def chat(
    context: typer.Context,
    session: Session = "",
    agent: Agent = "",
) -> None:
    """Converse. /help lists commands, /quit leaves; what is under way goes on without you."""
    run(_converse(context, session, agent))


async def _converse(context: typer.Context, session: str, agent: str) -> None:
    import asyncio

    from conveyor_client.cli.printer import printer
    from conveyor_client.cli.reading import read_lines

    shown = printer()
    lines = read_lines()
    at_work: set[asyncio.Task[None]] = set()
    interactive = sys.stdin.isatty()
    async with connect(context) as client:
        # Says at once when nothing answers, before anybody types a long message.
        await client.agents(page_size=1)
        known = _Conversation(session)
        if interactive:
            print("Type a message. /help lists commands, /quit leaves.")
        try:
            while (line := await lines.get()) is not None:
                text = line.strip()
                if not text:
                    continue
                if text in ("/quit", "/exit"):
                    return
                accepted = asyncio.Event()
                # Commands too: what is one, and what only looks like one, the gateway knows.
                task = asyncio.create_task(_exchange(client, known, text, agent, shown, accepted))
                at_work.add(task)
                task.add_done_callback(at_work.discard)
                # The next message must not overtake this one.
                await accepted.wait()
            # Input that ends (a pipe) still gets its answers.
            while at_work:
                await asyncio.wait(at_work)
        finally:
            for task in at_work:
                task.cancel()
            if at_work:
                await asyncio.wait(at_work)


class _Conversation:
    """Which session the conversation is in; known once the first message was accepted."""

    def __init__(self, key: str) -> None:
        self.key = key


async def _exchange(
    client: ConveyorClient,
    known: _Conversation,
    text: str,
    agent: str,
    shown: Printer,
    accepted: asyncio.Event,
) -> None:
    from conveyor_client.cli.narrate import Narrator, Utterance, Voice
    from conveyor_client.cli.traces import failure_line, find_page
    from svckit.errors import ServiceError

    narrator = Narrator(live=sys.stdout.isatty(), commands=True)
    try:
        async with aclosing(client.chat(text, session_key=known.key, agent_id=agent)) as stream:
            async for item in stream:
                if item.HasField("accepted"):
                    known.key = item.accepted.run.spec.session_key or known.key
                    accepted.set()
                for utterance in narrator.tell(item):
                    shown.show(utterance)
    except ServiceError as error:
        await find_page(client, error)
        where = failure_line(error)
        shown.show(Utterance(Voice.BAD, f"{error.message}\n  {where}" if where else error.message))
    finally:
        accepted.set()


def watch(
    context: typer.Context,
    session: Annotated[str, typer.Option(help="Everything that happens in this session.")] = "",
    flow: Annotated[str, typer.Option(help="Announcements of this flow.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Announcements of all sessions. The default.")
    ] = False,
    descendants: Annotated[
        bool, typer.Option("--descendants", help="With --session: also what it spawned.")
    ] = False,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Begin with the oldest kept, not with now.")
    ] = False,
    json: Json = False,
) -> None:
    """Print what happens, until interrupted."""
    if sum((bool(session), bool(flow), everything)) > 1:
        raise CannotRun("choose one of --session, --flow and --all", 2)

    async def work() -> None:
        async with connect(context) as client:
            if session:
                await _watch_session(client, session, descendants, from_start, json)
            else:
                await _watch_announcements(client, flow, from_start, json)

    run(work())


async def _watch_session(
    client: ConveyorClient, session: str, descendants: bool, from_start: bool, json: bool
) -> None:
    from conveyor_client.cli.narrate import Narrator
    from conveyor_client.cli.output import print_json_line
    from conveyor_client.cli.printer import printer

    narrator, shown = Narrator(live=sys.stdout.isatty(), thorough=True), printer()
    stream = client.watch_session(session, from_now=not from_start, include_descendants=descendants)
    async with aclosing(stream):
        async for item in stream:
            if json:
                print_json_line(item)
                continue
            for utterance in narrator.tell(item):
                shown.show(utterance)


async def _watch_announcements(
    client: ConveyorClient, flow: str, from_start: bool, json: bool
) -> None:
    from conveyor_client.cli.narrate import Narrator
    from conveyor_client.cli.output import print_json_line
    from conveyor_client.cli.printer import printer

    narrator, shown = Narrator(), printer()
    stream = client.watch_announcements(flow_id=flow, from_now=not from_start)
    async with aclosing(stream):
        async for item in stream:
            if json:
                print_json_line(item)
            elif item.HasField("announcement"):
                for utterance in narrator.announce(item.announcement):
                    shown.show(utterance)


def mode_of(name: QueueModeName | None) -> lane_pb.QueueMode.ValueType:
    """Return the queue mode that was named, unspecified for none."""
    from conveyor.scheduler.v1 import lane_pb2

    if name is None:
        return lane_pb2.QUEUE_MODE_UNSPECIFIED
    return lane_pb2.QueueMode.Value(f"QUEUE_MODE_{name.name}")


if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    AsyncChat = AsyncGenerator[gateway_pb.ChatResponse, None]
