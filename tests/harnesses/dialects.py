"""Three vendors' model APIs: what a request says, and how an answer is streamed or told at once.

Each dialect reads a request's body into `Asked` and writes a move as server-sent events. The pieces
before and after the text are apart, for the server may have to wait in between.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.harnesses.said import Asked, Call, Say, Tool, Turn

Body = Mapping[str, Any]
_ids = itertools.count(1)


class Answer(Protocol):
    """A streamed answer: `head`, then `piece` for each piece of a text or `call`, then `tail`."""

    def head(self) -> Iterator[str]: ...

    def piece(self, text: str) -> Iterator[str]: ...

    def call(self, call: Call) -> Iterator[str]: ...

    def tail(self) -> Iterator[str]: ...

    def whole(self, move: Say | Call) -> Body:
        """The answer to a request that does not want a stream."""


class Dialect(Protocol):
    """One vendor's API."""

    path: str

    def asked(self, body: Body) -> Asked: ...

    def answer(self, body: Body) -> Answer: ...


def _texts(content: Any) -> str:
    """The text of a content, be it a text, a part or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        for name in ("text", "output", "content"):
            if name in content:
                return _texts(content[name])
        return ""
    if isinstance(content, Sequence):
        return "\n".join(_texts(part) for part in content)
    return ""


def _event(body: Body, name: str = "") -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(body)}\n\n"


def _tool(name: str, schema: Body | None) -> Tool:
    schema = schema or {}
    return Tool(name, schema.get("properties") or {}, schema.get("required") or ())


# Anthropic messages


@dataclass
class AnthropicAnswer:
    body: Body
    stop: str = "end_turn"
    _open: bool = False

    def _message(self, content: Sequence[Body], stop: str | None) -> Body:
        return {
            "id": f"msg_{next(_ids):08}",
            "type": "message",
            "role": "assistant",
            "model": self.body.get("model"),
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 5},
        }

    def head(self) -> Iterator[str]:
        message = self._message([], None)
        yield _event({"type": "message_start", "message": message}, "message_start")

    def _start(self, block: Body) -> str:
        self._open = True
        body = {"type": "content_block_start", "index": 0, "content_block": block}
        return _event(body, "content_block_start")

    def _delta(self, delta: Body) -> str:
        body = {"type": "content_block_delta", "index": 0, "delta": delta}
        return _event(body, "content_block_delta")

    def piece(self, text: str) -> Iterator[str]:
        if not self._open:
            yield self._start({"type": "text", "text": ""})
        yield self._delta({"type": "text_delta", "text": text})

    def call(self, call: Call) -> Iterator[str]:
        self.stop = "tool_use"
        block = {"type": "tool_use", "id": f"toolu_{next(_ids):08}", "name": call.tool, "input": {}}
        yield self._start(block)
        whole = json.dumps(dict(call.arguments))
        yield self._delta({"type": "input_json_delta", "partial_json": whole})

    def tail(self) -> Iterator[str]:
        yield _event({"type": "content_block_stop", "index": 0}, "content_block_stop")
        delta = {"stop_reason": self.stop, "stop_sequence": None}
        usage = {"input_tokens": 10, "output_tokens": 5}
        yield _event({"type": "message_delta", "delta": delta, "usage": usage}, "message_delta")
        yield _event({"type": "message_stop"}, "message_stop")

    def whole(self, move: Say | Call) -> Body:
        if isinstance(move, Say):
            return self._message([{"type": "text", "text": move.text}], "end_turn")
        block = {"type": "tool_use", "id": f"toolu_{next(_ids):08}", "name": move.tool}
        return self._message([{**block, "input": dict(move.arguments)}], "tool_use")


class Anthropic:
    path = "/v1/messages"

    def asked(self, body: Body) -> Asked:
        turns: list[Turn] = []
        for message in body.get("messages", ()):
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            results = [part for part in parts if part.get("type") == "tool_result"]
            turns += [Turn("tool", _texts(part.get("content", ""))) for part in results]
            # One for each: some clients put what was said at different times into one message.
            turns += [Turn(message["role"], p["text"]) for p in parts if p.get("type") == "text"]
        tools = [_tool(t.get("name", ""), t.get("input_schema")) for t in body.get("tools") or ()]
        return Asked(turns, tools, str(body.get("model", "")))

    def answer(self, body: Body) -> AnthropicAnswer:
        return AnthropicAnswer(body)


# OpenAI chat completions


@dataclass
class ChatAnswer:
    body: Body
    finish: str = "stop"
    number: int = field(default_factory=lambda: next(_ids))

    def _chunk(self, delta: Body, finish: str | None = None) -> str:
        return _event(
            {
                "id": f"chatcmpl-{self.number}",
                "object": "chat.completion.chunk",
                "created": 0,
                "model": self.body.get("model"),
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
                if finish
                else None,
            }
        )

    def head(self) -> Iterator[str]:
        yield self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> Iterator[str]:
        yield self._chunk({"content": text})

    def _function(self, call: Call) -> Body:
        function = {"name": call.tool, "arguments": json.dumps(dict(call.arguments))}
        return {"index": 0, "id": f"call_{next(_ids)}", "type": "function", "function": function}

    def call(self, call: Call) -> Iterator[str]:
        self.finish = "tool_calls"
        yield self._chunk({"tool_calls": [self._function(call)]})

    def tail(self) -> Iterator[str]:
        yield self._chunk({}, self.finish)
        yield "data: [DONE]\n\n"

    def whole(self, move: Say | Call) -> Body:
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if isinstance(move, Say):
            message["content"] = move.text
        else:
            message["tool_calls"] = [self._function(move)]
        finish = "stop" if isinstance(move, Say) else "tool_calls"
        return {
            "id": f"chatcmpl-{self.number}",
            "object": "chat.completion",
            "created": 0,
            "model": self.body.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }


class Chat:
    path = "/v1/chat/completions"

    def asked(self, body: Body) -> Asked:
        turns = [Turn(m["role"], _texts(m.get("content") or "")) for m in body.get("messages", ())]
        functions = [tool.get("function") or {} for tool in body.get("tools") or ()]
        tools = [_tool(f.get("name", ""), f.get("parameters")) for f in functions]
        return Asked(turns, tools, str(body.get("model", "")))

    def answer(self, body: Body) -> ChatAnswer:
        return ChatAnswer(body)


# OpenAI responses


@dataclass
class ResponsesAnswer:
    body: Body
    number: int = field(default_factory=lambda: next(_ids))
    _sequence: Iterator[int] = field(default_factory=itertools.count)
    _text: str = ""
    _item: dict[str, Any] | None = None

    def _event(self, kind: str, **more: Any) -> str:
        return _event({"type": kind, "sequence_number": next(self._sequence), **more}, kind)

    def _response(self, status: str, output: Sequence[Body]) -> Body:
        usage = {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 15,
        }
        return {
            "id": f"resp_{self.number}",
            "object": "response",
            "created_at": 0,
            "status": status,
            "model": self.body.get("model"),
            "output": output,
            "usage": usage if status == "completed" else None,
        }

    def _message(self) -> dict[str, Any]:
        content = [{"type": "output_text", "text": self._text, "annotations": []}]
        return {
            "type": "message",
            "id": f"msg_{self.number}",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }

    @staticmethod
    def _where(item: Body) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": 0, "content_index": 0}

    def _function(self, call: Call) -> dict[str, Any]:
        return {
            "type": "function_call",
            "id": f"fc_{self.number}",
            "status": "completed",
            "call_id": f"call_{self.number}",
            "name": call.tool,
            "arguments": json.dumps(dict(call.arguments)),
        }

    def head(self) -> Iterator[str]:
        yield self._event("response.created", response=self._response("in_progress", []))

    def piece(self, text: str) -> Iterator[str]:
        if self._item is None:
            item = {**self._message(), "status": "in_progress", "content": []}
            yield self._event("response.output_item.added", output_index=0, item=item)
            part = {"type": "output_text", "text": "", "annotations": []}
            yield self._event("response.content_part.added", **self._where(item), part=part)
        self._text += text
        self._item = self._message()
        where = self._where(self._item)
        yield self._event("response.output_text.delta", **where, delta=text)

    def call(self, call: Call) -> Iterator[str]:
        self._item = self._function(call)
        item = {**self._item, "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=0, item=item)

    def tail(self) -> Iterator[str]:
        assert self._item is not None
        if self._item["type"] == "message":
            (part,) = self._item["content"]
            yield self._event("response.content_part.done", **self._where(self._item), part=part)
        yield self._event("response.output_item.done", output_index=0, item=self._item)
        yield self._event("response.completed", response=self._response("completed", [self._item]))

    def whole(self, move: Say | Call) -> Body:
        if isinstance(move, Say):
            self._text = move.text
            return self._response("completed", [self._message()])
        return self._response("completed", [self._function(move)])


class Responses:
    path = "/v1/responses"

    def asked(self, body: Body) -> Asked:
        given = body.get("input") or ()
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        turns: list[Turn] = []
        for item in items:
            kind = item.get("type", "message")
            if kind == "message":
                turns.append(Turn(str(item.get("role")), _texts(item.get("content"))))
            elif kind.endswith("_call_output"):
                turns.append(Turn("tool", _texts(item.get("output"))))
        offered = body.get("tools") or ()
        tools = [_tool(t.get("name") or t.get("type"), t.get("parameters")) for t in offered]
        return Asked(turns, tools, str(body.get("model", "")))

    def answer(self, body: Body) -> ResponsesAnswer:
        return ResponsesAnswer(body)


ALL: tuple[Dialect, ...] = (Anthropic(), Chat(), Responses())
