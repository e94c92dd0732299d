"""The verb `forecast`: plays a load on the scheduler's virtual clock and shows what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conveyor_client.cli.arguments import Json
from conveyor_client.cli.context import connect, run
from conveyor_client.cli.preset import Preset


def forecast(
    context: typer.Context,
    preset: Annotated[
        Preset | None, typer.Option(help="A textbook question; other options change it.")
    ] = None,
    customers: Annotated[
        int | None, typer.Option(help="They all arrive at once.", min=1, max=1_000_000)
    ] = None,
    messages: Annotated[
        int | None, typer.Option(help="Messages of each, in one session.", min=1, max=1000)
    ] = None,
    rate: Annotated[
        str, typer.Option(help="They arrive over time: 2/s, 10/min, 55/h.", metavar="N/UNIT")
    ] = "",
    during: Annotated[
        str, typer.Option("--for", help="How long they arrive. Default: 1h.", metavar="TIME")
    ] = "",
    even: Annotated[
        bool, typer.Option("--even", help="Evenly spaced rather than at random.")
    ] = False,
    arrivals: Annotated[
        Path | None,
        typer.Option(help="CSV: customer, and any of at, session, weight, priority, turn."),
    ] = None,
    turn: Annotated[
        str,
        typer.Option(
            help="Time of a turn: 5s; or p50=2s,p90=8s; or measured ones: 2s,3s,8s. Default: 5s.",
            metavar="TIME",
        ),
    ] = "",
    children: Annotated[
        int | None, typer.Option(help="Children that each turn spawns.", min=0, max=100)
    ] = None,
    background: Annotated[
        bool | None,
        typer.Option("--background/--wait", help="Answer at once, or wait for the children."),
    ] = None,
    child_turn: Annotated[
        str, typer.Option(help="Time of a child. Default: 5s.", metavar="TIME")
    ] = "",
    closing_turn: Annotated[
        str,
        typer.Option(help="Time of the turn after the last child. Default: none.", metavar="TIME"),
    ] = "",
    child_lane: Annotated[str, typer.Option(help="Lane of children. Default: subagent.")] = "",
    limit: Annotated[
        int | None,
        typer.Option(help="Limit of lane main. Default: as at present.", min=0, max=1_000_000),
    ] = None,
    lane: Annotated[
        list[str] | None,
        typer.Option(help="Limit of another lane. May be repeated.", metavar="NAME=LIMIT"),
    ] = None,
    rpm: Annotated[
        int | None, typer.Option(help="Requests/min that the provider allows.", min=1)
    ] = None,
    tpm: Annotated[
        int | None, typer.Option(help="Tokens/min that the provider allows.", min=1)
    ] = None,
    tokens_per_turn: Annotated[int | None, typer.Option(help="Read and written.", min=0)] = None,
    cost_per_turn: Annotated[float | None, typer.Option(help="In US dollars.", min=0)] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn at random.")] = 0,
    each: Annotated[bool, typer.Option("--each", help="List customers, up to 10,000.")] = False,
    json: Json = False,
) -> None:
    """Play a load on a virtual clock and say when whom is served, and which limit binds."""

    async def work() -> None:
        from conveyor_client.cli import loads
        from conveyor_client.cli.output import print_json

        typed = loads.Typed(
            customers=customers,
            messages=messages,
            rate=rate,
            during=during,
            even=even,
            arrivals=arrivals,
            turn=turn,
            children=children,
            child_turn=child_turn,
            closing_turn=closing_turn,
            background=background,
            child_lane=child_lane,
            limit=limit,
            lanes=tuple(lane or ()),
            rpm=rpm,
            tpm=tpm,
            tokens_per_turn=tokens_per_turn,
            cost_per_turn=cost_per_turn,
            seed=seed,
        )
        load = loads.as_input(loads.over(preset, typed))
        async with connect(context) as client:
            answer = await client.forecast(
                load, page_size=10_000 if each or load.children.per_turn else 0
            )
        if json:
            print_json(answer)
        else:
            from conveyor_client.cli.forecast_text import show

            show(answer, each=each)

    run(work())
