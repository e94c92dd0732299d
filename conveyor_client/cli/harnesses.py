"""Verbs about harnesses: `acp doctor`, `acp harnesses`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from conveyor_client.cli.arguments import Json
from conveyor_client.cli.context import connect, run
from conveyor_client.cli.local import MARKS

if TYPE_CHECKING:
    from conveyor.acp.v1 import doctor_pb2 as doctor_pb


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

    from conveyor_client.diagnosis import check_status

    report = run(work())
    if json:
        out.print_json(report)
    else:
        target = out.console()
        for check in report.checks:
            if check.harness_id and check_status(check) == "skipped":
                continue  # what failed before it says it all
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
        f"{MARKS[check_status(check)]} [bold]{out.plain(where)}{check_name(check)}[/]: "
        f"{out.plain(check.message)}{code}"
    )


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
