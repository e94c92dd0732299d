"""The verb `command`: what can be typed in a chat, from the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from conveyor_client.cli.arguments import Json
from conveyor_client.cli.context import connect, run


def command(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="For example /status, or kill 1.")
    ],
    session: Annotated[str, typer.Option(help="Conversation it is about. Default: your own.")] = "",
    request_id: Annotated[
        str | None, typer.Option(help="Giving it again with the same id does it once.")
    ] = None,
    json: Json = False,
) -> None:
    """Do a command of the chat, for example "/subagents list"; `/help` lists them."""
    # The slash may be left out: some shells take it for a path.
    text = " ".join(words).strip()
    text = text if text.startswith("/") else f"/{text}"

    async def work() -> None:
        from conveyor_client.cli.output import print_json, printable

        async with connect(context) as client:
            answer = await client.execute(text, session_key=session, request_id=request_id)
        if json:
            print_json(answer)
        else:
            print(printable(answer.text))

    run(work())
