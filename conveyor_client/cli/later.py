"""Verbs whose call exists in the contract and is filled by a later release.

They call the server all the same: the message about what is missing is the server's, and a server
that can do it answers. The answer is then shown as JSON.
"""

from __future__ import annotations

from typing import Annotated

import typer

from conveyor_client.cli.arguments import Json
from conveyor_client.cli.context import connect, run

Id = Annotated[str, typer.Argument(help="Id of the ACP session.")]


def spawn(
    context: typer.Context,
    harness: Annotated[str, typer.Argument(help="Harness. Default: as configured.")] = "",
    cwd: Annotated[str, typer.Option(help="Working directory on the server.")] = "",
    session: Annotated[str, typer.Option(help="Conversation to point at the session.")] = "",
    json: Json = False,
) -> None:
    """Open a session in a harness."""

    async def work() -> None:
        from conveyor.acp.v1 import session_pb2
        from conveyor_client.cli.output import print_json

        spec = session_pb2.AcpSessionSpec(harness_id=harness, cwd=cwd)
        async with connect(context) as client:
            print_json(await client.acp_spawn(spec, bind_session_key=session))

    run(work())


def prompt(context: typer.Context, session_id: Id, text: str, json: Json = False) -> None:
    """Queue a prompt for an ACP session."""

    async def work() -> None:
        from conveyor_client.cli.output import print_json

        async with connect(context) as client:
            print_json(await client.acp_prompt(session_id, text))

    run(work())


def sessions(context: typer.Context, json: Json = False) -> None:
    """List ACP sessions."""

    async def work() -> None:
        from conveyor_client.cli.output import print_json

        async with connect(context) as client:
            print_json(await client.acp_sessions())

    run(work())


def close(context: typer.Context, session_id: Id, json: Json = False) -> None:
    """Close an ACP session with its process."""

    async def work() -> None:
        from conveyor_client.cli.output import print_json

        async with connect(context) as client:
            print_json(await client.acp_close(session_id))

    run(work())


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


def add_to(*, acp: typer.Typer) -> None:
    """Add the verbs to their group."""
    acp.command("spawn")(spawn)
    acp.command("prompt")(prompt)
    acp.command("sessions")(sessions)
    acp.command("close")(close)
    acp.command("serve")(serve)
