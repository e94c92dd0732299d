"""Verbs that examine this machine and its configuration: `doctor`, `acp doctor`, `config`."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from conveyor_client.cli.arguments import Json
from conveyor_client.cli.context import connect, options, run

if TYPE_CHECKING:
    from conveyor.acp.v1 import doctor_pb2 as doctor_pb


acp_app = typer.Typer(no_args_is_help=True, help="External coding agents.")
config_app = typer.Typer(no_args_is_help=True, help="The configuration: check, show.")

_MARKS = {
    "ok": "[green]✓[/]",
    "warning": "[yellow]![/]",
    "failed": "[red]✗[/]",
    "skipped": "[dim]-[/]",
}


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
                f"{_MARKS[result.status]} [bold]{out.plain(result.name)}[/]: "
                f"{out.plain(result.message)}"
            )
            if result.hint:
                target.print(f"    → {out.plain(result.hint)}")
        target.print("healthy" if healthy else "[red]not healthy[/]")
    if not healthy:
        raise typer.Exit(1)


@acp_app.command("doctor")
def acp_doctor(
    context: typer.Context,
    harness: Annotated[str, typer.Argument(help="Only this harness. Default: as configured.")] = "",
    json: Json = False,
) -> None:
    """Examine the harnesses; exit 1 unless all is well."""
    from conveyor_client.cli import output as out

    async def work() -> doctor_pb.DoctorReport:
        async with connect(context) as client:
            return await client.doctor(harness)

    report = run(work())
    if json:
        out.print_json(report)
    else:
        target = out.console()
        for check in report.checks:
            target.print(_acp_line(check))
            if check.hint:
                target.print(f"    → {out.plain(check.hint)}")
        target.print(f"healthy: {'yes' if report.healthy else 'no'}")
    if not report.healthy:
        raise typer.Exit(1)


def _acp_line(check: doctor_pb.DoctorCheck) -> str:
    from conveyor_client.cli import output as out
    from conveyor_client.diagnosis import check_name, check_status

    where = f"{check.harness_id}: " if check.harness_id else ""
    code = f" [dim]({out.plain(check.code)})[/]" if check.code else ""
    return (
        f"{_MARKS[check_status(check)]} [bold]{out.plain(where)}{check_name(check)}[/]: "
        f"{out.plain(check.message)}{code}"
    )


@acp_app.command("harnesses")
def acp_harnesses(context: typer.Context, json: Json = False) -> None:
    """List the known harnesses."""

    async def work() -> None:
        from conveyor_client.cli import output as out

        async with connect(context) as client:
            found = await client.harnesses(page_size=500)
            if json:
                out.print_json(found)
                return
            out.print_table(
                ("HARNESS", "NAME", "INSTALLED", "ALLOWED", "COMMAND", "INSTALL"),
                (
                    (
                        out.plain(h.harness_id),
                        out.plain(h.display_name),
                        "[green]yes[/]" if h.installed else "no",
                        "yes" if h.allowed else "no",
                        out.plain(h.command),
                        "-" if h.installed else out.plain(h.install_hint),
                    )
                    for h in found.harnesses
                ),
                "No harnesses.",
            )

    run(work())


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
