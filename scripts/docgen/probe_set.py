"""`probe.md`: the prompts of the probe, how a reply is judged, and what a verdict takes."""

from __future__ import annotations

from agent_svc.domain.probe import scoring
from agent_svc.domain.probe.promptset import TIERS, ProbePrompt
from agent_svc.domain.probe.verdict import FEWEST, REQUIRED
from agent_svc.probing import AT_ONCE, FEW, published
from docgen import NOTE

TIER_TEXTS = {
    "natural": "Nobody says how. Most requests have parts that are independent of each other; some have none.",
    "explicit": "The user says that sub-agents are to be used, or that they are not.",
    "forced": "The provider is told that the reply must call `sessions_spawn` (`tool_choice`).",
}


def render() -> str:
    """The document."""
    found = published()
    percent = {tier: f"{REQUIRED[tier]:.0%}" for tier in TIERS}
    text = (
        NOTE
        + f"""# The probe

`conveyor model probe MODEL` sends these {len(found.prompt)} prompts (set {found.version}), says what came of each, and
gives a verdict with its figures. How to use it: [Probe a model](../how-to/probe-a-model.md).

## What is sent

Each prompt is the first message of a conversation, with the system prompt and the tools that a root agent has by
default ([tools](tools.md)). Up to {AT_ONCE} prompts are asked at once; the rates of the provider hold as for every call.
Nothing that the model calls is carried out. A model that only looks around (`agents_list` and the like) is told what
a turn would tell it, and asked again, {scoring.STEPS} replies in all; what it does in the reply after that counts.
Sub-agents have to be started in one reply: one after the other is not in parallel.

## What a reply amounts to

The first that holds:

| Outcome | When |
|---|---|
| `INVALID_CALL` | a call that a turn could not carry out: unknown tool, arguments missing or wrong, an agent or a model that is not there |
| `RIGHT`, `WRONG_COUNT` | valid calls, and as many sub-agents as are right, or not. Where none is right, one is too many |
| `INVALID_CALL` | no call, but one written as text |
| `INVENTED_RESULT` | no call, but results of sub-agents that never ran |
| `INVENTED_REFUSAL` | no call, and a claim that it may not or cannot, which is false: the tool is there |
| `IGNORED_TOOL` | no call where sub-agents are right |
| `RIGHT` | no call where none is right |
| `PROVIDER_ERROR` | the provider failed; counted in no figure |

Texts are read by the detectors of the [delegation guard](delegation-guard.md).

## The verdict

A try is *good* when its outcome is `RIGHT`. With a forced tool `WRONG_COUNT` is good too: the force is about
calling, not about how often. Required are {percent["natural"]} of the natural tier, {percent["explicit"]} of the explicit one and
{percent["forced"]} of the forced one.

| Verdict | When |
|---|---|
| `orchestrator` | natural and explicit reach what is required: it delegates by itself |
| `needs-insisting` | not so, but explicit or forced does: the guard gets it to delegate |
| `leaf-only` | neither explicit nor forced does |
| unclear | fewer than {FEWEST} answered tries in a tier that could change the verdict, or a tier that was left out |

Each share comes with its 95 % Wilson interval. When what is required lies within the interval, the report says that
more repetitions make the verdict surer.

A probe ends early, and stores nothing, after {FEW} provider errors in a row, and at the first one that the next prompt
would meet too (`auth`, `quota`, `not_found`, `not_set_up`; see [provider errors](provider-errors.md)).

## The prompts

A changed prompt is a new version of the set, and the report names the version. The file is
`agent_svc/domain/probe/prompts.toml`.
"""
    )
    for tier in TIERS:
        text += f"\n### {tier.capitalize()}\n\n{TIER_TEXTS[tier]}\n"
        for prompt in found.of([tier]):
            text += _shown(prompt)
    return text


def _shown(prompt: ProbePrompt) -> str:
    quoted = "\n".join(f"> {line}".rstrip() for line in prompt.text.strip().splitlines())
    noun = "sub-agent" if prompt.children == 1 else "sub-agents"
    right = f"{prompt.children} {noun}" if prompt.children else "no sub-agent"
    return f"\n`{prompt.id}`: {right}\n\n{quoted}\n"
