"""Probes between our own form and the wire."""

from __future__ import annotations

from agent_svc.domain.probe.promptset import Tier
from agent_svc.domain.probe.verdict import REQUIRED, Outcome, Report, Verdict
from agent_svc.probing import Tried
from conveyor.agent.v1 import probe_pb2 as pb
from conveyor.common.v1 import usage_pb2
from svckit.grpc.status import to_proto

TIERS: dict[Tier, pb.ProbeTier.ValueType] = {
    "natural": pb.PROBE_TIER_NATURAL,
    "explicit": pb.PROBE_TIER_EXPLICIT,
    "forced": pb.PROBE_TIER_FORCED,
}
OUTCOMES: dict[Outcome, pb.ProbeOutcome.ValueType] = {
    "right": pb.PROBE_OUTCOME_RIGHT,
    "wrong_count": pb.PROBE_OUTCOME_WRONG_COUNT,
    "invalid_call": pb.PROBE_OUTCOME_INVALID_CALL,
    "ignored_tool": pb.PROBE_OUTCOME_IGNORED_TOOL,
    "invented_refusal": pb.PROBE_OUTCOME_INVENTED_REFUSAL,
    "invented_result": pb.PROBE_OUTCOME_INVENTED_RESULT,
    "provider_error": pb.PROBE_OUTCOME_PROVIDER_ERROR,
}
VERDICTS: dict[Verdict, pb.ProbeVerdict.ValueType] = {
    "unknown": pb.PROBE_VERDICT_UNSPECIFIED,
    "orchestrator": pb.PROBE_VERDICT_ORCHESTRATOR,
    "needs-insisting": pb.PROBE_VERDICT_NEEDS_INSISTING,
    "leaf-only": pb.PROBE_VERDICT_LEAF_ONLY,
}


def tried_to_proto(tried: Tried) -> pb.ProbeResult:
    """Write one try."""
    result = pb.ProbeResult(
        prompt_id=tried.prompt.id,
        tier=TIERS[tried.prompt.tier],
        repetition=tried.repetition,
        outcome=OUTCOMES[tried.outcome],
        expected_children=tried.prompt.children,
        asked_children=tried.asked,
        excerpt=tried.excerpt,
        error=to_proto(tried.error) if tried.error is not None else None,
    )
    result.latency.FromMicroseconds(round(tried.seconds * 1e6))
    return result


def report_to_proto(report: Report) -> pb.ProbeReport:
    """Write a report."""
    written = pb.ProbeReport(
        model=report.model,
        base_url=report.base_url,
        verdict=VERDICTS[report.verdict],
        figures=[
            pb.ProbeFigure(
                tier=TIERS[figure.tier], outcome=OUTCOMES[figure.outcome], count=figure.count
            )
            for figure in report.figures
        ],
        prompt_set=report.prompt_set,
        usage=usage_pb2.Usage(
            model_calls=report.calls,
            input_tokens=report.usage.read,
            cached_input_tokens=report.usage.cached,
            output_tokens=report.usage.written,
            cost_micros_usd=report.usage.cost or 0,
            unpriced_calls=report.unpriced,
        ),
        scores=[
            pb.ProbeScore(
                tier=TIERS[score.tier],
                tries=score.tries,
                good=score.good,
                share=score.share,
                low=score.low,
                high=score.high,
                required=REQUIRED[score.tier],
            )
            for score in report.scores
        ],
        provider_errors=report.provider_errors,
        explanation=report.explanation,
    )
    written.probe_time.FromMicroseconds(report.ended_us)
    return written
