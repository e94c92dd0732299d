"""How many tokens a call may take, before it is made. Settled afterwards with what it took."""

from __future__ import annotations

from agent_svc.domain.prompt import Answered, Prompt, Said, ToolAnswer
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
        extra += TOKENS_PER_MESSAGE
        match message:
            case Said(text, _, attachments):
                size += len(text.encode())
                extra += TOKENS_PER_ATTACHMENT * len(attachments)
            case Answered(text, calls):
                size += len(text.encode())
                size += sum(len(call.name) + len(call.arguments.encode()) for call in calls)
            case ToolAnswer(_, tool, content):
                size += len(tool) + len(content.encode())
    for schema in prompt.tools:
        size += len(schema.name) + len(schema.description.encode()) + len(str(schema.parameters))
    return Usage(read=extra + -(-size // BYTES_PER_TOKEN), written=REPLY_TOKENS)
