"""Verbs about external coding agents: look at harnesses, open sessions in them, give them work."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from conveyor_client.cli.arguments import Json, Limit, Page
from conveyor_client.cli.context import CannotRun, connect, run
from conveyor_client.cli.manual import Verbs
from conveyor_client.cli.talk import Queue, mode_of

if TYPE_CHECKING:
    from conveyor.acp.v1 import session_pb2 as acp_pb

acp_app = Verbs(no_args_is_help=True, help="External coding agents.")

Id = Annotated[str, typer.Argument(metavar="SESSION", help="Id of the ACP session.")]


class PermissionName(StrEnum):
    """What a harness may do without asking."""

    APPROVE_READS = "approve-reads"
    APPROVE_ALL = "approve-all"
    DENY_ALL = "deny-all"
    ASK = "ask"


class LifeName(StrEnum):
    """How long a session lives."""

    PERSISTENT = "persistent"
    ONESHOT = "oneshot"


class AcpStateName(StrEnum):
    """States of an ACP session."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    ASKING = "asking"
    PARKED = "parked"
    CLOSING = "closing"
    CLOSED = "closed"
    FAILED = "failed"


Permissions = Annotated[
    PermissionName | None,
    typer.Option("--permissions", help="What it may do unasked."),
]
Cwd = Annotated[str, typer.Option(help="Working directory on the server.")]
Label = Annotated[str, typer.Option(help="Short name for people.")]
Model = Annotated[str, typer.Option(help="Model of the harness.")]
TurnTimeout = Annotated[
    float | None,
    typer.Option(help="Seconds that one turn may work.", min=1),
]
RequestId = Annotated[
    str | None, typer.Option(help="Giving it again with the same id does it once.")
]
_COLUMNS = (
    "SESSION",
    "HARNESS",
    "STATE",
    "LABEL",
    "PERMISSIONS",
    "DIRECTORY",
    "FROM",
    "ACTIVE",
)


@acp_app.command("spawn")
def spawn(
    context: typer.Context,
    harness: Annotated[str, typer.Argument(help="Harness. Default: as configured.")] = "",
    task: Annotated[str, typer.Argument(help="First prompt; - reads standard input.")] = "",
    bind: Annotated[
        str,
        typer.Option("--bind", "--session", help="Conversation that it shall answer until closed."),
    ] = "",
    cwd: Cwd = "",
    label: Label = "",
    permissions: Permissions = None,
    mode: Annotated[LifeName, typer.Option(help="How long it lives.")] = LifeName.PERSISTENT,
    model: Model = "",
    resume: Annotated[str, typer.Option(help="The harness's own id of a session to load.")] = "",
    turn_timeout: TurnTimeout = None,
    env: Annotated[
        list[str] | None,
        typer.Option(help="Name of a variable of the server that it may see. May be repeated."),
    ] = None,
    customer: Annotated[str, typer.Option(help="Customer it is for. Default: yourself.")] = "",
    request_id: RequestId = None,
    json: Json = False,
) -> None:
    """Open a session in a harness; with a task, prompt it. Exit 1 when that failed.

    What is left out is as configured; the model is the harness's own choice then.
    """
    prompt = sys.stdin.read() if task == "-" else task

    async def work() -> bool:
        from conveyor.acp.v1 import session_pb2
        from conveyor_client.cli.acp_words import session_lines
        from conveyor_client.cli.following import follow_work
        from conveyor_client.cli.output import console, print_json_line
        from svckit.ids import new_ulid

        spec = session_pb2.AcpSessionSpec(
            harness_id=harness,
            cwd=cwd,
            label=label,
            model=model,
            resume_id=resume,
            env_names=env or (),
            customer_key=customer,
            mode=session_pb2.AcpSessionMode.Value(f"ACP_SESSION_MODE_{mode.name}"),
        )
        if permissions is not None:
            spec.permission_mode = _permission(permissions)
        if turn_timeout:
            spec.turn_timeout.FromMicroseconds(round(turn_timeout * 1e6))
        key = request_id or new_ulid()
        async with connect(context) as client:
            spawned = await client.acp_spawn(spec, bind_session_key=bind, request_id=key)
            if json:
                print_json_line(spawned)
            else:
                target = console()
                for line in session_lines(spawned.session, bool(bind)):
                    target.print(line)
            if not prompt:
                return True
            session_id = spawned.session.acp_session_id
            # Of its own, so that a repeated spawn repeats the prompt too.
            stream = client.acp_work(session_id, prompt, request_id=f"{key[:120]}-first")
            return await follow_work(client, stream, json=json)

    _exit(run(work()))


@acp_app.command("prompt")
def prompt(
    context: typer.Context,
    session_id: Id,
    text: Annotated[str, typer.Argument(help="The prompt; - reads standard input.")],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow it until its turn has ended.")
    ] = True,
    queue_mode: Queue = None,
    request_id: RequestId = None,
    json: Json = False,
) -> None:
    """Prompt a session and show its work until its turn has ended; exit 1 when that failed.

    On a terminal, what it asks is answered right there. Interrupted, it goes on without you.
    """
    message = sys.stdin.read() if text == "-" else text

    async def work() -> bool:
        from conveyor_client.cli.following import follow_work
        from conveyor_client.cli.output import print_json, state_word
        from conveyor_client.cli.places import fate, place

        mode = mode_of(queue_mode)
        async with connect(context) as client:
            if wait:
                stream = client.acp_work(
                    session_id, message, queue_mode=mode, request_id=request_id
                )
                return await follow_work(client, stream, json=json)
            sent = await client.acp_prompt(
                session_id, message, queue_mode=mode, request_id=request_id
            )
            if json:
                print_json(sent)
                return True
            accepted = sent.accepted
            print(f"run {accepted.run.run_id} {state_word(accepted.run.state)}")
            for words in (fate(accepted.outcome, accepted.estimate), place(accepted.estimate)):
                if words:
                    print(words)
            return True

    try:
        _exit(run(work()))
    except KeyboardInterrupt:
        print(f"it works on; `conveyor acp cancel {session_id}` stops it", file=sys.stderr)
        raise


@acp_app.command("sessions")
def sessions(
    context: typer.Context,
    harness: Annotated[str, typer.Option(help="Only of this harness.")] = "",
    session: Annotated[str, typer.Option(help="Only those spawned from this conversation.")] = "",
    customer: Annotated[str, typer.Option(help="Only of this customer.")] = "",
    state: Annotated[
        list[AcpStateName] | None,
        typer.Option("--state", help="Only this state. May be repeated. Default: not ended."),
    ] = None,
    limit: Limit = 50,
    page: Page = "",
    json: Json = False,
) -> None:
    """List ACP sessions, newest first: those that have not ended, unless --state says otherwise."""

    async def work() -> None:
        from conveyor.acp.v1 import session_pb2
        from conveyor_client.cli import output as out
        from conveyor_client.cli.acp_words import permissions_word, state_markup

        wanted = session_pb2.AcpSessionFilter(
            harness_id=harness,
            parent_session_key=session,
            customer_key=customer,
            states=[
                session_pb2.AcpSessionState.Value(f"ACP_SESSION_STATE_{one.name}")
                for one in state or ()
            ],
        )
        async with connect(context) as client:
            found = await client.acp_sessions(wanted, page_size=limit, page_token=page)
            out.print_page(
                found,
                _COLUMNS,
                (
                    (
                        out.plain(s.acp_session_id),
                        out.plain(s.spec.harness_id),
                        state_markup(s),
                        out.plain(s.spec.label) or "-",
                        permissions_word(s.spec.permission_mode),
                        out.plain(s.spec.cwd),
                        out.plain(s.spec.parent_session_key) or "-",
                        out.when(s.active_time),
                    )
                    for s in found.sessions
                ),
                "No ACP sessions.",
                json=json,
                whole="SESSION",
                give_way=("ACTIVE", "FROM", "PERMISSIONS", "DIRECTORY", "LABEL"),
            )

    run(work())


@acp_app.command("show")
def show(context: typer.Context, session_id: Id, json: Json = False) -> None:
    """Show a session: its state, its settings, and what its harness offers."""

    async def work() -> None:
        async with connect(context) as client:
            found = await client.acp_session(session_id)
        if json:
            from conveyor_client.cli.output import print_json

            print_json(found)
        else:
            _print_session(found.session)

    run(work())


@acp_app.command("cancel")
def cancel(
    context: typer.Context,
    session_id: Id,
    reason: Annotated[str, typer.Option(help="Shown to users.")] = "",
    json: Json = False,
) -> None:
    """Stop the turn at work in a session, if any. The session stays."""

    async def work() -> None:
        async with connect(context) as client:
            stopped = await client.acp_cancel(session_id, reason=reason)
        if json:
            from conveyor_client.cli.output import print_json

            print_json(stopped)
        else:
            print(f"stopping run {stopped.run_id}" if stopped.run_id else "no turn is at work")

    run(work())


@acp_app.command("close")
def close(context: typer.Context, session_id: Id, json: Json = False) -> None:
    """Close a session with its process. Conversations that it answered go back to their agents."""

    async def work() -> None:
        async with connect(context) as client:
            closed = await client.acp_close(session_id)
        if json:
            from conveyor_client.cli.output import print_json

            print_json(closed)
        else:
            _print_session(closed.session)

    run(work())


@acp_app.command("set")
def set_(
    context: typer.Context,
    session_id: Id,
    permissions: Permissions = None,
    mode: Annotated[str, typer.Option(help="One of the modes that the harness offers.")] = "",
    model: Model = "",
    label: Label = "",
    cwd: Cwd = "",
    turn_timeout: TurnTimeout = None,
    option: Annotated[
        list[str] | None, typer.Option(help="name=value of the harness. May be repeated.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what was said, with the next turn.")
    ] = False,
    json: Json = False,
) -> None:
    """Change settings of a session with its next turn; what is left out stays as it is."""

    async def work() -> None:
        from conveyor.acp.v1 import session_pb2

        settings = session_pb2.AcpSessionSettings(
            harness_mode=mode or None,
            model=model or None,
            label=label or None,
            cwd=cwd or None,
            options=dict(_pair(one) for one in option or ()),
            fresh=fresh,
        )
        if permissions is not None:
            settings.permission_mode = _permission(permissions)
        if turn_timeout:
            settings.turn_timeout.FromMicroseconds(round(turn_timeout * 1e6))
        if not settings.ByteSize():
            raise CannotRun("say what to change, for example --permissions ask", 2)
        async with connect(context) as client:
            changed = await client.acp_configure(session_id, settings)
        if json:
            from conveyor_client.cli.output import print_json

            print_json(changed)
        else:
            _print_session(changed.session)

    run(work())


@acp_app.command("serve")
def serve(
    context: typer.Context,
    agent: Annotated[
        str, typer.Option(help="Agent that answers. Default: as the routes say.")
    ] = "",
) -> None:
    """Offer our agents to an ACP client over standard input and output."""

    async def work() -> None:
        from conveyor_client.serving.command import serve_stdio

        async with connect(context) as client:
            await serve_stdio(client, agent_id=agent)

    run(work())


def _print_session(session: acp_pb.AcpSession) -> None:
    from conveyor_client.cli.acp_words import session_lines
    from conveyor_client.cli.output import console

    target = console()
    bound = session.spec.session_key == session.spec.parent_session_key
    for line in session_lines(session, bound):
        target.print(line)


def _permission(name: PermissionName) -> acp_pb.PermissionMode.ValueType:
    from conveyor.acp.v1 import session_pb2

    return session_pb2.PermissionMode.Value(f"PERMISSION_MODE_{name.name}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CannotRun(f"--option needs name=value, not {text!r}", 2)
    return name, value


def _exit(succeeded: bool) -> None:
    if not succeeded:
        raise typer.Exit(1)
