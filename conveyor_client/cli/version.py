"""The verb `version`: which release this is, and which one the suite runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from conveyor_client.cli.arguments import Json
from conveyor_client.cli.context import connect, run
from svckit.version import __version__


def version(
    context: typer.Context,
    client: Annotated[
        bool, typer.Option("--client", help="Only that of this command; calls nobody.")
    ] = False,
    json: Json = False,
) -> None:
    """Print the version of this command, and of the gateway that it calls."""
    if not json:
        print(f"client {__version__}", flush=True)
    document: dict[str, Any] = {"client": {"version": __version__}}

    async def ask() -> None:
        from google.protobuf import json_format

        from conveyor_client.cli import output as out

        async with connect(context) as suite:
            found = await suite.server_info()
        document["server"] = json_format.MessageToDict(found, preserving_proto_field_name=True)
        if not json:
            print(f"server {out.printable(found.version)}, since {out.when(found.start_time)}")
            if found.trace_url_template:
                print(f"traces {out.printable(found.trace_url_template)}")

    if not client:
        run(ask())
    if json:
        import json as json_module

        print(json_module.dumps(document, ensure_ascii=False))
