"""The demo models: deterministic, offline, for trying the suite and for its tests.

`demo` follows the directives of the message it answers (see `directives`); messages that came
together it takes as one. Without any, a message that asks for several things is delegated, one
sub-agent per thing, and their results are joined; told in words to use sub-agents, or not to, it
obeys.
Where no sub-agents may be started it does everything itself. `demo-weak` is a model that delegates
badly: asked to delegate it claims that it may not, and otherwise it ignores its tools.

They see exactly the prompt that any model would see, and count words as tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent_svc.domain import compaction, results
from agent_svc.domain.content import excerpt
from agent_svc.domain.directives import SPAWNING, Directive, directives, seconds, things
from agent_svc.domain.guard.asks import asks_to_delegate
from agent_svc.domain.prompt import Answered, Prompt, PromptMessage, Said, ToolAnswer
from agent_svc.domain.tools import SPAWN, YIELD

LABEL_WORDS = 4
MOST_TOLD = 20
"""Sub-agents that a number in a text starts at most."""
_ORDER = "Start a sub-agent."
# So that the order does not go on to the children of the child.
_YOURSELF = "Do this yourself, without sub-agents."
_EACH = re.compile(r"\b(?:each|every|per|je)\b", re.IGNORECASE)
_DIRECTIVE_SIGNS = re.compile(r"\[\[[^\[\]:]*:|\]\]")


@dataclass(frozen=True)
class DemoReply:
    """What a demo model does: wait, then say `text` and call tools as (name, JSON arguments).

    With `failure` it fails instead, with this text.
    """

    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    sleep_seconds: float = 0.0
    failure: str = ""


def demo(prompt: Prompt) -> DemoReply:
    """Reply as the model `demo`."""
    if prompt.system == compaction.SYSTEM:
        return DemoReply(_summary(prompt.messages))
    asked_at, asked = _last_said(prompt.messages)
    after = prompt.messages[asked_at + 1 :]
    if asked is not None and asked.origin == "runtime":
        return DemoReply(text=_closing(asked.text, prompt.messages[:asked_at]))
    text = _said_together(prompt.messages, asked_at)
    orders = directives(text)
    if any(isinstance(message, Answered) for message in after):
        return DemoReply(text=_after_tools(text, orders, after))
    pause = sum(seconds(order.text) or 0.0 for order in orders if order.verb == "sleep")
    if failing := next((order for order in orders if order.verb == "fail"), None):
        return DemoReply(sleep_seconds=pause, failure=failing.text or "told to fail")
    calls = _calls(text, orders, forced=prompt.force_tool == SPAWN)
    # A tool that is not offered is called all the same: what comes back says why it is not.
    if calls and (prompt.has_tool(SPAWN) or any(order.verb == "tool" for order in orders)):
        count = sum(1 for name, _ in calls if name == SPAWN)
        noun = "sub-agent" if count == 1 else "sub-agents"
        said = f"I'll hand this to {count} {noun}." if count else ""
        return DemoReply(said, tuple(calls), pause)
    return DemoReply(_own_answer(text, orders, prompt.messages[:asked_at]), (), pause)


def demo_weak(prompt: Prompt) -> DemoReply:
    """Reply as the model `demo-weak`."""
    if prompt.system == compaction.SYSTEM:
        return DemoReply(_summary(prompt.messages))
    asked_at, _ = _last_said(prompt.messages)
    text = _said_together(prompt.messages, asked_at)
    words = text.lower()
    if any(word in words for word in ("spawn", "sub-agent", "subagent", "delegate")):
        return DemoReply(
            "I'm sorry, but I'm not authorised to start sub-agents in this environment, so I "
            "can't delegate this."
        )
    return DemoReply(f"I did everything myself: {excerpt(text)}")


def count_words(prompt: Prompt, reply: DemoReply) -> tuple[int, int]:
    """Tokens read and written, where a word is a token."""
    read = len(prompt.system.split())
    for message in prompt.messages:
        read += len((message.content if isinstance(message, ToolAnswer) else message.text).split())
    written = len(reply.text.split())
    written += sum(len(arguments.split()) + 1 for _, arguments in reply.calls)
    return read, written


def _summary(messages: Sequence[PromptMessage]) -> str:
    """Sum a conversation up by what the customer said, in a few words each."""
    told = "\n".join(message.text for message in messages if isinstance(message, Said))
    said = [
        excerpt(line.partition(": ")[2], 60)
        for line in told.splitlines()
        if line.startswith(("Customer: ", "Summary of what came before: "))
    ]
    return "The customer said: " + "; ".join(said[-20:])


def _last_said(messages: Sequence[PromptMessage]) -> tuple[int, Said | None]:
    """The message to act on: the newest that a person said, or a newer one with results."""
    for position in range(len(messages) - 1, -1, -1):
        message = messages[position]
        if not isinstance(message, Said):
            continue
        if message.origin == "person" or results.read(message.text):
            return position, message
    return 0, None


def _said_together(messages: Sequence[PromptMessage], last: int) -> str:
    """All that a person said up to `last` without an answer in between: it gets one answer."""
    texts: list[str] = []
    for message in reversed(messages[: last + 1]):
        if not isinstance(message, Said) or message.origin != "person":
            break
        texts.insert(0, message.text)
    return "\n\n".join(texts)


def _calls(
    text: str, orders: Sequence[Directive], *, forced: bool = False
) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    for order in orders:
        if order.verb in ("spawn", "spawn-background") and order.text:
            other = {"agent_id": order.arg} if order.arg else {}
            calls.append((SPAWN, _spawn(order.text, wait=order.verb == "spawn", **other)))
        elif order.verb in ("acp", "acp-background") and order.text:
            extra = {"runtime": "acp", **({"agent_id": order.arg} if order.arg else {})}
            calls.append((SPAWN, _spawn(order.text, wait=order.verb == "acp", **extra)))
        elif order.verb == "tool" and order.arg:
            calls.append((order.arg, order.text or "{}"))
    calls.extend(
        (YIELD, json.dumps({"message": order.text or "I'll get back to you."}))
        for order in orders
        if order.verb == "yield"
    )
    if not orders:
        calls.extend((SPAWN, _spawn(task)) for task in _tasks(text))
    if forced and not any(name == SPAWN for name, _ in calls):
        calls.append((SPAWN, _spawn(text)))
    return calls


def _tasks(text: str) -> list[str]:
    """What to hand over: as told, else one task per thing of a list."""
    if asks_to_delegate(_ORDER, text) is None:
        return []  # it takes back any order: told not to
    parts, told = things(text), asks_to_delegate(text)
    if told is None or (parts and told.count in (0, len(parts))):
        return parts
    if parts and _EACH.search(told.excerpt):
        return parts
    return [f"{text}\n\n{_YOURSELF}"] * min(max(told.count, 1), MOST_TOLD)


def _spawn(task: str, *, wait: bool | None = None, **extra: str) -> str:
    arguments: dict[str, object] = {"task": task, "label": _label(task), **extra}
    # Without a directive the configured default decides, as for a model that says nothing.
    if wait is not None:
        arguments["wait"] = wait
    return json.dumps(arguments)


def _label(task: str) -> str:
    plain = _DIRECTIVE_SIGNS.sub(" ", task)
    return excerpt(" ".join(plain.split()[:LABEL_WORDS]), 40)


def _told_to_reply(orders: Sequence[Directive]) -> str | None:
    said = [order.text for order in orders if order.verb == "reply"]
    return "\n\n".join(said) if said else None


def _after_tools(text: str, orders: Sequence[Directive], after: Sequence[PromptMessage]) -> str:
    """Reply once the tools of this message have answered."""
    if (said := _told_to_reply(orders)) is not None:
        return said
    answers = [message for message in after if isinstance(message, ToolAnswer)]
    if ordered := [order.arg for order in orders if order.verb == "tool"]:
        return _from_tools([answer for answer in answers if answer.tool in ordered], answers)
    found = [result for answer in answers for result in results.read(answer.content)]
    if found:
        return _joined(found)
    refused = [answer.content for answer in answers if answer.failed]
    if refused and len(refused) == len(answers):
        return f"I could not delegate this: {refused[0]}"
    started = sum(1 for answer in answers if answer.tool == SPAWN and not answer.failed)
    return f"Started {started} in the background. I'll tell you when the work is done."


def _from_tools(called: Sequence[ToolAnswer], answers: Sequence[ToolAnswer]) -> str:
    """Say what the tools returned that the message told to call, and what sub-agents found."""
    lines = [
        f"{answer.tool}{' failed' if answer.failed else ''}: {results.read_tool(answer.content)}"
        for answer in called
    ]
    found = [result for answer in answers for result in results.read(answer.content)]
    return "\n".join([*lines, *([_joined(found)] if found else [])])


def _own_answer(text: str, orders: Sequence[Directive], before: Sequence[PromptMessage]) -> str:
    if (said := _told_to_reply(orders)) is not None:
        return said
    tasks = [order.text for order in orders if order.verb in SPAWNING]
    if tasks:
        return "Done without sub-agents, which I may not start here: " + "; ".join(tasks)
    pauses = [order.text for order in orders if order.verb == "sleep"]
    if pauses:
        return f"Waited {', '.join(pauses)}."
    if any(
        isinstance(message, ToolAnswer) and message.content == results.STILL_RUNNING
        for message in before[-8:]
    ):
        return f"Noted while sub-agents are at work: {excerpt(text)}"
    several = things(text)
    if several:
        return "\n".join(f"{number}. {thing}: done." for number, thing in enumerate(several, 1))
    return f"Done: {excerpt(text)}"


def _closing(text: str, before: Sequence[PromptMessage]) -> str:
    quoted = next((line[2:] for line in text.splitlines() if line.startswith("> ")), "")
    joined = _joined(results.read(text))
    return f"> {quoted}\n\n{joined}" if quoted else joined


def _joined(found: Sequence[results.ShownResult]) -> str:
    good = sum(1 for result in found if result.status == "succeeded")
    if good == len(found):
        head = "The sub-agent is done." if good == 1 else f"All {good} sub-agents are done."
    else:
        head = f"{good} of {len(found)} sub-agents succeeded."
    lines = [
        f"{number}. {result.label or result.run_id}: {result.text}"
        if result.status == "succeeded"
        else f"{number}. {result.label or result.run_id}: {result.status} ({result.text})"
        for number, result in enumerate(found, start=1)
    ]
    return "\n".join([head, *lines])
