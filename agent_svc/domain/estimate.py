"""How many tokens a call may take, before it is made. Settled afterwards with what it took."""

from __future__ import annotations

from collections.abc import Iterable

from agent_svc.domain.prompt import Answered, Prompt, PromptMessage, Said, ToolAnswer
from agent_svc.domain.steps import Usage

# Bytes of UTF-8 for one token: about right for English, and more than enough for other scripts.
BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_ATTACHMENT = 1000
# Nothing bounds a reply; most are shorter. A longer one is counted when it is there.
REPLY_TOKENS = 1000


def expected(prompt: Prompt) -> Usage:
    """Tokens that a prompt may be counted as, and its reply."""
    size, extra = len(prompt.system.encode()), 0
    for message in prompt.messages:
        bytes_, more = _size(message)
        size, extra = size + bytes_, extra + more
    for schema in prompt.tools:
        size += len(schema.name) + len(schema.description.encode()) + len(str(schema.parameters))
    return Usage(read=extra + _tokens(size), written=REPLY_TOKENS)


def tokens(messages: Iterable[PromptMessage]) -> int:
    """Tokens that messages may be counted as."""
    total = 0
    for message in messages:
        size, extra = _size(message)
        total += extra + _tokens(size)
    return total


def _size(message: PromptMessage) -> tuple[int, int]:
    """Bytes of text, and tokens beside them."""
    extra = TOKENS_PER_MESSAGE
    match message:
        case Said(text, _, attachments):
            return len(text.encode()), extra + TOKENS_PER_ATTACHMENT * len(attachments)
        case Answered(text, calls):
            said = sum(len(call.name) + len(call.arguments.encode()) for call in calls)
            return len(text.encode()) + said, extra
        case ToolAnswer(_, tool, content):
            return len(tool) + len(content.encode()), extra


def _tokens(size: int) -> int:
    return -(-size // BYTES_PER_TOKEN)
