"""`tools.md`: the tools that the suite itself gives to models, from their schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_svc.domain import family, session_texts, session_tools
from agent_svc.domain.prompt import ToolSchema
from agent_svc.domain.tools import ToolRules, schemas
from docgen import NOTE, cell

INTRO = """# Tools of the suite

What a model can call without any tool server: to start sub-agents, to see what became of them, and to
steer them. The descriptions are those that the models read. Tools of your own come from MCP servers,
see [tools and approvals](../how-to/tools-and-approvals.md).

**Who has them.** A run that may start sub-agents: its depth is below `max_spawn_depth`, and neither its
agent's `tools` nor its parent's ceiling leave them out. A leaf has none of them.

**What a run sees.** Its own conversation and the sub-agents below it, at any depth: its own, and in a
conversation also those that earlier messages started and left at work, since the last `/new`. Never what
is above it, beside it, or another customer's; to name such a run is answered as if there were none. An
ended sub-agent is there for `subagents.archive_after_minutes`, then it is archived: it leaves these tools
and the lists of sessions, and its events stay until retention.

**Naming a sub-agent.** Its number in `subagents list` (in the order they were started), its label, or
its run id or the first {prefix} characters and more of it. Of two with one label the one at work is meant.
Session keys are not told to models: they hold the customer's name on a channel.

**What comes back.** A sub-agent's result stands in `<untrusted-result>` with what the runtime knows about
it: run, label, status, seconds, tokens, cost, model, trace. What the tools below read of a session stands
in `<untrusted-record>`. Both are marked as data, and their text cannot close the mark. A message is cut
at {entry} characters, an answer at {total}.

**Repeated after a crash** they do nothing twice: looking changes nothing, stopping twice is stopping once,
a sub-agent and a message have request ids of their run and tool call.
"""

TRY = """
## Try it without a model

The built-in `demo` model calls a tool when it is told to. Start something in the background, then look at
it from a later message of the same conversation, and stop it:

```sh
conveyor send --session agent:main:cli:direct:bob '[[spawn-background: [[sleep: 60s]] [[reply: found it]]]]'
conveyor send --wait --session agent:main:cli:direct:bob '[[tool subagents: {"action": "list"}]]'
conveyor send --wait --session agent:main:cli:direct:bob '[[tool subagents: {"action": "kill", "target": "1"}]]'
```

The second one answers with a line like this:

```
1. «60s found it»: working · main, demo · 6.9 s old · 0 tokens · run 01M82S1DCBBED33XSV1WJFH4WN
```
"""


def render() -> str:
    """The document."""
    rules = ToolRules(depth=0, max_depth=1, wait_default=True)
    tools = (*schemas(rules), *session_tools.SCHEMAS)
    intro = INTRO.format(
        prefix=family.LEAST_PREFIX,
        entry=f"{session_texts.ENTRY_CHARS:,}",
        total=f"{session_texts.TOTAL_CHARS:,}",
    )
    return NOTE + intro + "".join(_tool(tool) for tool in tools) + TRY


def _tool(tool: ToolSchema) -> str:
    parts = [f"\n## `{tool.name}`\n\n{tool.description}\n"]
    properties: Mapping[str, Any] = tool.parameters["properties"]
    if properties:
        required = tool.parameters.get("required", ())
        parts.append("\n| Argument | Type | Meaning |\n|---|---|---|\n")
        parts += [
            f"| `{name}`{' (required)' if name in required else ''} | {_type(shape)} "
            f"| {cell(shape.get('description', ''))} |\n"
            for name, shape in properties.items()
        ]
    return "".join(parts)


def _type(shape: Mapping[str, Any]) -> str:
    if "enum" in shape:
        return ", ".join(f"`{value}`" for value in shape["enum"])
    if shape["type"] == "object":
        inner = ", ".join(f"`{name}`: {_type(of)}" for name, of in shape["properties"].items())
        return f"object with {inner}"
    words = {"string": "text", "integer": "whole number", "boolean": "`true`, `false`"}
    kind = words.get(shape["type"], str(shape["type"]))
    if "maximum" in shape:
        return f"{kind}, {shape['minimum']} to {shape['maximum']}"
    return f"{kind}, at least {shape['minimum']}" if "minimum" in shape else kind
