"""Verbs that list what there is: sessions with their messages, agents."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from conveyor_client.cli.arguments import Json, Limit, Page, more
from conveyor_client.cli.context import CannotRun, connect, run

if TYPE_CHECKING:
    from conveyor.gateway.v1 import session_pb2 as session_pb


def sessions(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="Show the messages of this session.")] = "",
    reset: Annotated[bool, typer.Option("--reset", help="Make the session forget.")] = False,
    children: Annotated[
        bool, typer.Option("--children", help="List those of sub-agents instead.")
    ] = False,
    archived: Annotated[
        bool, typer.Option("--archived", help="With those that ended and left the list.")
    ] = False,
    limit: Limit = 50,
    page: Page = "",
    json: Json = False,
) -> None:
    """List sessions, or show the messages of one."""
    if reset and not key:
        raise CannotRun("--reset needs the key of a session", 2)

    async def work() -> None:
        from conveyor.gateway.v1 import session_pb2
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
                if not messages.messages and not page:
                    all_of_it = f"conveyor watch --session {shlex.quote(key)} --from-start"
                    print("Nothing was said to its agent. With what coding agents were told:")
                    print(f"  {out.printable(all_of_it)}")
                more(messages.next_page_token)
                return
            wanted = session_pb2.SessionFilter(include_archived=archived)
            if children:
                kinds = (session_pb2.SESSION_KIND_SUBAGENT, session_pb2.SESSION_KIND_ACP)
                wanted.kinds.extend(kinds)
            found = await client.sessions(wanted, page_size=limit, page_token=page)
            out.print_page(
                found,
                ("SESSION", "AGENT", "CUSTOMER", "AT WORK", "WAITING", "ACTIVE"),
                (
                    (
                        out.plain(s.session_key),
                        out.plain(_answers(s)),
                        out.plain(s.customer_key),
                        out.plain(s.run_id) or "-",
                        str(s.waiting),
                        out.when(s.active_time),
                    )
                    for s in found.sessions
                ),
                "No sessions yet.",
                json=json,
                whole="AT WORK",
                give_way=("CUSTOMER", "AGENT", "ACTIVE"),
            )

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
                ("AGENT", "MODEL", "FALLBACKS", "TOOLS", "MAY SPAWN", "ABOUT"),
                (
                    (
                        out.plain(a.agent_id),
                        out.plain(a.model),
                        out.plain(", ".join(a.fallback_models)) or "-",
                        out.plain(", ".join(a.tools)) or "-",
                        out.plain(", ".join(a.spawnable_agent_ids)) or "-",
                        out.plain(a.description) or "-",
                    )
                    for a in found.agents
                ),
                "No agents.",
            )

    run(work())


def _answers(session: session_pb.Session) -> str:
    """Return who answers a session: its agent, or the ACP session that it is bound to."""
    if session.bound_acp_session_id:
        return f"acp {session.bound_acp_session_id}"
    return session.agent_id
