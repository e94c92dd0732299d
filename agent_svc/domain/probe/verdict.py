"""From the outcomes of all tries to a verdict about the model.

The verdict rests on the share of good tries of each tier. Shares of a dozen tries are rough: each
is told with its 95 % Wilson interval, and a verdict whose share may also lie on the other side of
what is required says that more repetitions make it surer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from agent_svc.domain.probe.promptset import TIERS, Tier
from agent_svc.domain.steps import Usage

Outcome = Literal[
    "right",
    "wrong_count",
    "invalid_call",
    "ignored_tool",
    "invented_refusal",
    "invented_result",
    "provider_error",
]
Verdict = Literal["unknown", "orchestrator", "needs-insisting", "leaf-only"]

REQUIRED: Mapping[Tier, float] = {"natural": 0.75, "explicit": 0.85, "forced": 0.9}
"""Share of good tries that counts as reliable."""
FEWEST = 5
"""Answered tries of a tier below which its share says nothing."""
_Z = 1.959963984540054  # 95 % of a normal distribution


class Figure(msgspec.Struct, frozen=True):
    """How often one outcome came up in one tier."""

    tier: Tier
    outcome: Outcome
    count: int


class Score(msgspec.Struct, frozen=True):
    """How well a tier went: good tries among the answered ones, with the interval of the share."""

    tier: Tier
    tries: int
    good: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """Share of good tries; 0 without any."""
        return self.good / self.tries if self.tries else 0.0

    @property
    def reached(self) -> bool | None:
        """Whether the share is what is required; `None` when there are too few tries to tell."""
        if self.tries < FEWEST:
            return None
        return self.share >= REQUIRED[self.tier]

    @property
    def sure(self) -> bool:
        """True when the whole interval lies on one side of what is required."""
        return self.tries >= FEWEST and not self.low < REQUIRED[self.tier] <= self.high


class Report(msgspec.Struct, frozen=True):
    """What a probe found out about one model at one base URL."""

    model: str
    base_url: str
    prompt_set: str
    verdict: Verdict
    explanation: str
    figures: tuple[Figure, ...]
    scores: tuple[Score, ...]
    provider_errors: int
    usage: Usage
    calls: int
    unpriced: int
    ended_us: int


class Judged(msgspec.Struct, frozen=True):
    """The part of a report that follows from the outcomes alone."""

    verdict: Verdict
    explanation: str
    figures: tuple[Figure, ...]
    scores: tuple[Score, ...]
    provider_errors: int


def judge(outcomes: Iterable[tuple[Tier, Outcome]]) -> Judged:
    """Count the outcomes, and say what the model is good for."""
    counts = Counter(outcomes)
    failed = sum(count for (_, outcome), count in counts.items() if outcome == "provider_error")
    figures = tuple(
        Figure(tier, outcome, count)
        for (tier, outcome), count in sorted(counts.items())
        if outcome != "provider_error"
    )
    tried = {tier for tier, _ in counts}
    scores = tuple(_score(tier, figures) for tier in TIERS if tier in tried)
    verdict, deciding = _verdict({score.tier: score for score in scores})
    explanation = _explain(verdict, deciding, scores)
    return Judged(verdict, explanation, figures, scores, failed)


def wilson(good: int, tries: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share. It stays within 0 and 1, and holds for few tries too."""
    if not tries:
        return 0.0, 1.0
    share, z2 = good / tries, _Z * _Z
    middle = (share + z2 / (2 * tries)) / (1 + z2 / tries)
    half = _Z / (1 + z2 / tries) * (share * (1 - share) / tries + z2 / (4 * tries**2)) ** 0.5
    # At the ends the interval touches them; what arithmetic leaves over is cut.
    low = 0.0 if not good else max(0.0, middle - half)
    high = 1.0 if good == tries else min(1.0, middle + half)
    return low, high


def _score(tier: Tier, figures: Sequence[Figure]) -> Score:
    own = [figure for figure in figures if figure.tier == tier]
    tries = sum(figure.count for figure in own)
    # A forced choice says that a call is made, not how many: the number is the model's to get
    # right only where the choice is its own.
    fine = ("right", "wrong_count") if tier == "forced" else ("right",)
    good = sum(figure.count for figure in own if figure.outcome in fine)
    return Score(tier, tries, good, *wilson(good, tries))


def _verdict(scores: Mapping[Tier, Score]) -> tuple[Verdict, tuple[Tier, ...]]:
    """The verdict, and the tiers that decided it."""
    natural, explicit, forced = (scores[tier].reached if tier in scores else None for tier in TIERS)
    if natural and explicit:
        return "orchestrator", ("natural", "explicit")
    if natural is not False and explicit is not False:
        return "unknown", ()  # it may be an orchestrator
    if explicit:
        return "needs-insisting", ("natural", "explicit")
    if forced:
        return "needs-insisting", ("explicit", "forced")
    if explicit is None or forced is None:
        return "unknown", ()
    return "leaf-only", ("explicit", "forced")


_SAYS: Mapping[Verdict, str] = {
    "orchestrator": "It delegates by itself.",
    "needs-insisting": "It does not delegate reliably by itself, but does when told or forced to.",
    "leaf-only": "It does not delegate reliably, not even when told or forced to.",
    "unknown": "Too few answers to tell, or not the tiers that a verdict takes.",
}


def _explain(verdict: Verdict, deciding: Sequence[Tier], scores: Sequence[Score]) -> str:
    unsure = [score.tier for score in scores if score.tier in deciding and not score.sure]
    if not unsure:
        return _SAYS[verdict]
    return (
        f"{_SAYS[verdict]} With so few answers the {' and '.join(unsure)} share may also lie "
        "on the other side of what is required: more repetitions make the verdict surer."
    )
