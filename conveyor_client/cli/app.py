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
from conveyor_client.cli.manual import Verbs

app = Verbs(
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


RUN, TALK, LOOK, LEAD = "Run it", "Talk to it", "Look into it", "Lead it"

app.command("up", rich_help_panel=RUN)(up.up)
app.command("demo", rich_help_panel=RUN)(up.demo)
app.command("doctor", rich_help_panel=RUN)(local.doctor)
app.add_typer(local.config_app, name="config", rich_help_panel=RUN)
app.command("version", rich_help_panel=RUN)(version.version)

app.command("chat", rich_help_panel=TALK)(talk.chat)
app.command("send", rich_help_panel=TALK)(talk.send)
app.command("watch", rich_help_panel=TALK)(talk.watch)
app.command("command", rich_help_panel=TALK)(command.command)
app.add_typer(questions.questions_app, name="questions", rich_help_panel=TALK)
app.command("steer", rich_help_panel=TALK)(runs.steer)

app.command("sessions", rich_help_panel=LOOK)(lists.sessions)
app.command("runs", rich_help_panel=LOOK)(runs.runs)
app.add_typer(flows.flow_app, name="flow", rich_help_panel=LOOK)
app.add_typer(lanes.lanes_app, name="lanes", rich_help_panel=LOOK)
app.command("why", rich_help_panel=LOOK)(why.why)
app.command("forecast", rich_help_panel=LOOK)(forecast.forecast)
app.command("agents", rich_help_panel=LOOK)(lists.agents)

app.command("cancel", rich_help_panel=LEAD)(runs.cancel)
app.add_typer(tasks.tasks_app, name="tasks", rich_help_panel=LEAD)
app.add_typer(models.model_app, name="model", rich_help_panel=LEAD)
acp.acp_app.command("doctor")(harnesses.acp_doctor)
acp.acp_app.command("harnesses")(harnesses.acp_harnesses)
app.add_typer(acp.acp_app, name="acp", rich_help_panel=LEAD)
