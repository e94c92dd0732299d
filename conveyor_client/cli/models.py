"""`conveyor model`: which models there are, and how well one delegates."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from enum import StrEnum
from typing import Annotated

import typer

from conveyor_client.cli.arguments import Json
from conveyor_client.cli.context import CannotRun, connect, run
from conveyor_client.cli.manual import Verbs

model_app = Verbs(no_args_is_help=True, help="Models: list, probe.")


class Tier(StrEnum):
    """How strongly the prompts ask for delegation."""

    NATURAL = "natural"
    EXPLICIT = "explicit"
    FORCED = "forced"


@model_app.command("list")
def model_list(context: typer.Context, json: Json = False) -> None:
    """List the configured models, with what the newest probe of each found."""

    async def work() -> None:
        from conveyor_client.cli import output as out
        from conveyor_client.cli.probe_text import shares, verdict_markup

        async with connect(context) as client:
            found = await client.models(page_size=500)
            if json:
                out.print_json(found)
                return
            out.print_table(
                ("MODEL", "DELEGATES", "GOOD", "PROBED", "AGENTS", "CONTEXT", "BASE URL"),
                (
                    (
                        out.plain(m.model),
                        verdict_markup(m.probe.verdict) if m.HasField("probe") else "never probed",
                        shares(m.probe) or "-",
                        out.when(m.probe.probe_time),
                        out.plain(", ".join(m.agent_ids)) or "-",
                        f"{m.context_tokens:,}" if m.context_tokens else "-",
                        out.plain(m.base_url) or "-",
                    )
                    for m in found.models
                ),
                "No models.",
                whole="MODEL",
                give_way=("CONTEXT", "PROBED", "BASE URL", "AGENTS"),
            )

    run(work())


@model_app.command("probe")
def probe(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="As provider:model, or demo.")],
    tier: Annotated[
        list[Tier] | None,
        typer.Option(help="Only this tier; may be given again. Default: all. One is not stored."),
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, max=20, help="Times each prompt is sent.")] = 1,
    json: Json = False,
) -> None:
    """Measure how well a model delegates. Costs model calls.

    Sends the published prompts, counts what comes of each, and says whether the model delegates by
    itself (orchestrator), when told or forced to (needs-insisting), or not reliably (leaf-only).
    With --json one document per line: every result, then the report.
    """

    async def work() -> None:
        from conveyor.agent.v1 import probe_pb2
        from conveyor_client.cli.output import console, print_json_line
        from conveyor_client.cli.probe_text import ProbeProgress, report_lines

        tiers = [probe_pb2.ProbeTier.Value(f"PROBE_TIER_{one.name}") for one in tier or ()]
        target = console()
        async with (
            connect(context) as client,
            aclosing(client.probe_model(model, tiers=tiers, repetitions=repetitions)) as items,
        ):
            if json:
                async for item in items:
                    print_json_line(item)
                return
            with ProbeProgress(target, model) as progress:
                report = None
                async for item in items:
                    if item.HasField("report"):
                        report = item.report
                    else:
                        progress.tried(item.result, item.total)
        if report is None:
            raise CannotRun("the probe ended without a report")
        _show(report_lines(report, complete=not tier or set(tier) == set(Tier)))

    def _show(lines: Iterable[str]) -> None:
        from conveyor_client.cli.output import console

        target = console()
        for line in lines:
            target.print(line)

    run(work())
