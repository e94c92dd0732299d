"""Whether a sub-agent can begin with a copy of its parent's conversation."""

from __future__ import annotations

from collections.abc import Sequence

from agent_svc.domain import estimate
from agent_svc.domain.prompt import Answered, Prompt, PromptMessage, Said
from agent_svc.domain.render import Exchange

SHARE = 0.5
"""Of the sub-agent's context. More leaves its model little room for the work itself."""


def tokens(history: Sequence[Exchange]) -> int:
    """About how many tokens a copy of a conversation adds to every prompt."""
    messages: list[PromptMessage] = []
    for exchange in history:
        messages += [Said(item.message.text) for item in exchange.inputs]
        if exchange.reply is not None:
            messages.append(Answered(exchange.reply.text))
        if exchange.kind == "summary":
            messages.append(Said(exchange.quoted))
    return estimate.expected(Prompt("", messages)).read


def too_long(history: Sequence[Exchange], window: int) -> str:
    """Why a conversation is not handed over, for both models; empty when it is.

    `window` is how much the sub-agent's model can read, in tokens.
    """
    count, most = tokens(history), int(window * SHARE)
    if count <= most:
        return ""
    return (
        f"The conversation was too long to hand over (about {count:,} tokens, at most {most:,}): "
        "the sub-agent begins without it."
    )
