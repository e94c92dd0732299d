"""Verbs that run the suite: `up` and `demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from conveyor_client.cli.context import options, run


def up(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show all the services log.")
    ] = False,
) -> None:
    """Start the four services, keep them alive, stop them together on Ctrl-C."""
    from conveyor_client.cli.suite import run_suite, services_of

    chosen = options(context)
    settings = chosen.settings()
    scheme = "https" if settings.gateway.tls.cert_file else "http"
    console = f"{scheme}://{settings.gateway.http}"
    run(run_suite(services_of(chosen, settings, verbose), console=console))


def demo(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document per line.")] = False,
) -> None:
    """Send a request that needs three sub-agents and show what happens.

    Uses the suite that runs, or starts one of its own on a temporary directory and stops it.
    """
    from conveyor_client.cli.suite import demo as show_it

    if not run(show_it(options(context), json=json)):
        raise typer.Exit(1)
