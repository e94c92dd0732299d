"""Whether a sub-agent can begin with a copy of its parent's conversation."""

from __future__ import annotations

from collections.abc import Sequence

from agent_svc.domain import estimate
from agent_svc.domain.prompt import Answered, Prompt, PromptMessage, Said
from agent_svc.domain.render import Exchange

MOST_TOKENS = 32_000
"""What may be handed over, estimated. More leaves a model little room for the work itself."""


def tokens(history: Sequence[Exchange]) -> int:
    """About how many tokens a copy of a conversation adds to every prompt."""
    messages: list[PromptMessage] = []
    for exchange in history:
        messages += [Said(item.message.text) for item in exchange.inputs]
        if exchange.reply is not None:
            messages.append(Answered(exchange.reply.text))
    return estimate.expected(Prompt("", messages)).read


def too_long(history: Sequence[Exchange]) -> str:
    """Why a conversation is not handed over, for both models; empty when it is."""
    count = tokens(history)
    if count <= MOST_TOKENS:
        return ""
    return (
        f"The conversation was too long to hand over (about {count:,} tokens, at most "
        f"{MOST_TOKENS:,}): the sub-agent begins without it."
    )
