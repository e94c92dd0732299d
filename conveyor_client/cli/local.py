"""Verbs that examine this machine and its configuration: `doctor`, `config`."""

from __future__ import annotations

import json as json_module

import typer

from conveyor_client.cli.arguments import Json
from conveyor_client.cli.context import options, run
from conveyor_client.cli.manual import Verbs

config_app = Verbs(no_args_is_help=True, help="The configuration: check, show.")

MARKS = {
    "ok": "[green]✓[/]",
    "warning": "[yellow]![/]",
    "failed": "[red]✗[/]",
    "skipped": "[dim]-[/]",
}
"""How checks went, as rich markup."""


def doctor(context: typer.Context, json: Json = False) -> None:
    """Check configuration, store, ports, services and harnesses; say how to repair what fails."""
    from conveyor_client.cli import output as out
    from conveyor_client.diagnosis import examine

    results = run(examine(options(context)))
    healthy = not any(result.status == "failed" for result in results)
    if json:
        document = {"healthy": healthy, "checks": [result.as_dict() for result in results]}
        print(json_module.dumps(document, ensure_ascii=False))
    else:
        target = out.console()
        for result in results:
            target.print(
                f"{MARKS[result.status]} [bold]{out.plain(result.name)}[/]: "
                f"{out.plain(result.message)}"
            )
            if result.hint:
                target.print(f"    → {out.plain(result.hint)}")
        target.print("healthy" if healthy else "[red]not healthy[/]")
    if not healthy:
        raise typer.Exit(1)


@config_app.command("check")
def config_check(context: typer.Context) -> None:
    """Check the configuration file and the environment; exit 2 when they cannot be used."""
    from svckit.settings import DEFAULT_FILE

    chosen = options(context)
    chosen.settings()
    path = chosen.config or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    print(f"{path} is good" if path else "there is no conveyor.toml here; the defaults are good")


@config_app.command("show")
def config_show(context: typer.Context, json: Json = False) -> None:
    """Print the configuration in force, defaults included, as TOML."""
    from conveyor_client.diagnosis import flat_toml
    from svckit.postgres import masked

    data = options(context).settings().model_dump(mode="json")
    if data["store"]["url"].startswith("postgresql:"):
        data["store"]["url"] = masked(data["store"]["url"])
    if json:
        print(json_module.dumps(data, ensure_ascii=False))
        return
    for line in flat_toml(data):
        print(line)
