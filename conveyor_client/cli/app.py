"""All verbs, with their options. What they do is in the modules that they import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conveyor_client.cli import (
    acp,
    command,
    flows,
    forecast,
    harnesses,
    lanes,
    lists,
    local,
    models,
    questions,
    runs,
    talk,
    tasks,
    up,
    version,
    why,
)
from conveyor_client.cli.context import Options

app = typer.Typer(
    name="conveyor",
    help="Runs teams of agents for real customers: start the suite, talk to it, look into it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from svckit.version import __version__

        typer.echo(f"conveyor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration file. Default: conveyor.toml here, if there is one."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Gateway to call, host:port. Default: gateway.grpc as configured."),
    ] = None,
    token_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable that holds the bearer token. Default: CONVEYOR_TOKEN."
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File that holds the bearer token.")
    ] = None,
    tls: Annotated[
        bool | None,
        typer.Option("--tls/--no-tls", help="Encrypt. Default: as configured.", show_default=False),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(help="Who signed the gateway's certificate (PEM); implies --tls."),
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    context.obj = Options(config, address, token_env, token_file, tls, ca_file)


app.command("up")(up.up)
app.command("demo")(up.demo)
app.command("chat")(talk.chat)
app.command("send")(talk.send)
app.command("watch")(talk.watch)
app.command("command")(command.command)
app.command("sessions")(lists.sessions)
app.command("runs")(runs.runs)
app.command("cancel")(runs.cancel)
app.command("steer")(runs.steer)
app.add_typer(flows.flow_app, name="flow")
app.add_typer(tasks.tasks_app, name="tasks")
app.add_typer(questions.questions_app, name="questions")
app.add_typer(lanes.lanes_app, name="lanes")
app.command("why")(why.why)
app.command("forecast")(forecast.forecast)
app.command("agents")(lists.agents)
app.add_typer(models.model_app, name="model")
acp.acp_app.command("doctor")(harnesses.acp_doctor)
acp.acp_app.command("harnesses")(harnesses.acp_harnesses)
app.add_typer(acp.acp_app, name="acp")
app.command("doctor")(local.doctor)
app.add_typer(local.config_app, name="config")
app.command("version")(version.version)
