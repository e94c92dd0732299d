"""How a probe is told: what each prompt came to while it runs, then the verdict with figures."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from conveyor.agent.v1 import probe_pb2 as pb
from conveyor_client.cli import output as out
from svckit.contract_words import VERDICTS

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = {
    pb.PROBE_VERDICT_ORCHESTRATOR: "green",
    pb.PROBE_VERDICT_NEEDS_INSISTING: "yellow",
    pb.PROBE_VERDICT_LEAF_ONLY: "red",
}
OUTCOMES = {
    pb.PROBE_OUTCOME_RIGHT: "right",
    pb.PROBE_OUTCOME_WRONG_COUNT: "wrong number of sub-agents",
    pb.PROBE_OUTCOME_INVALID_CALL: "call not valid, or written as text",
    pb.PROBE_OUTCOME_IGNORED_TOOL: "ignored the tool",
    pb.PROBE_OUTCOME_INVENTED_REFUSAL: "invented a refusal",
    pb.PROBE_OUTCOME_INVENTED_RESULT: "invented a result",
    pb.PROBE_OUTCOME_PROVIDER_ERROR: "provider error",
}
EXCERPT_CHARS = 100


def verdict_markup(verdict: pb.ProbeVerdict.ValueType) -> str:
    """Return the verdict, coloured."""
    return f"[{COLOURS.get(verdict, 'white')}]{VERDICTS.get(verdict, 'unclear')}[/]"


def tier_word(tier: pb.ProbeTier.ValueType) -> str:
    """Return the name of a tier."""
    return pb.ProbeTier.Name(tier).removeprefix("PROBE_TIER_").lower()


def shares(report: pb.ProbeReport) -> str:
    """Return the shares of the tiers on one line."""
    return ", ".join(f"{tier_word(s.tier)} {s.good}/{s.tries}" for s in report.scores)


class ProbeProgress:
    """Tells each try that did not go well as it ends, and on a terminal how far the probe is."""

    def __init__(self, target: Console, model: str) -> None:
        self._target = target
        self._model = out.plain(model)
        self._done = 0
        self._status = target.status(f"probing {self._model}…")

    def __enter__(self) -> Self:
        if self._target.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status.stop()

    def tried(self, result: pb.ProbeResult, total: int) -> None:
        """Take one result in."""
        self._done += 1
        if result.outcome != pb.PROBE_OUTCOME_RIGHT:
            self._target.print(_line(result))
        self._status.update(
            f"probing {self._model}: {self._done} of {total}, {out.plain(result.prompt_id)}"
        )


def _line(result: pb.ProbeResult) -> str:
    what = OUTCOMES.get(result.outcome, "unknown outcome")
    if result.outcome == pb.PROBE_OUTCOME_WRONG_COUNT:
        what += f" ({result.asked_children}, right: {result.expected_children})"
    said = result.error.message if result.HasField("error") else result.excerpt
    said = " ".join(said.split())
    if len(said) > EXCERPT_CHARS:
        said = said[: EXCERPT_CHARS - 1] + "…"
    quoted = f": [dim]{out.plain(said)}[/]" if said else ""
    return f"{out.plain(result.prompt_id)}: {what}{quoted}"


def report_lines(report: pb.ProbeReport, *, complete: bool) -> Iterator[str]:
    """Yield a report in words, with its figures."""
    where = f" at {out.plain(report.base_url)}" if report.base_url else ""
    yield ""
    yield f"[bold]{out.plain(report.model)}{where}: {verdict_markup(report.verdict)}[/]"
    yield out.plain(report.explanation)
    yield ""
    width = max((len(tier_word(score.tier)) for score in report.scores), default=0)
    for score in report.scores:
        name = tier_word(score.tier).ljust(width)
        good = f"{score.good} of {score.tries}".rjust(9)
        yield (
            f"  {name} {good} good, {score.share:4.0%}"
            f" (95 %: {score.low:.0%} to {score.high:.0%}; required: {score.required:.0%})"
        )
    for tier in (score.tier for score in report.scores):
        bad = [
            f"{OUTCOMES.get(figure.outcome, '?')} {figure.count}"
            for figure in report.figures
            if figure.tier == tier and figure.outcome != pb.PROBE_OUTCOME_RIGHT
        ]
        if bad:
            yield f"  {tier_word(tier)}: {', '.join(bad)}"
    if report.provider_errors:
        yield f"  provider errors, not counted: {report.provider_errors}"
    kept = "" if complete else "; not stored, since not all tiers were tried"
    yield ""
    yield (
        f"[dim]{report.usage.model_calls} model calls, {out.tokens(report.usage)}; "
        f"prompt set {out.plain(report.prompt_set)}{kept}[/]"
    )
