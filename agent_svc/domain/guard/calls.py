"""Reads tool calls that a model wrote as text, in the formats its training left in it.

A call is read when the reply is that call: with the marks of a format around it, alone on its
lines, or in a fence with nothing but a short lead-in before it. A sample inside an explanation
is no call, and a call names a tool that was offered. Arguments come back as JSON text; whether the
tool takes them is not decided here.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

MOST_CALLS = 20
LONGEST_TEXT = 30_000
"""Characters of a reply that is looked at. The formats with marks are read by patterns that take
the square of it at worst, while everybody's turns wait."""

Call = tuple[str, str]
"""Name of the tool, and its arguments as JSON text."""

_NAME_KEYS = ("name", "tool", "tool_name", "function", "function_name", "action", "recipient_name")
_ARGUMENT_KEYS = (
    *("arguments", "parameters", "args", "input", "tool_input", "action_input", "params"),
    "kwargs",
)
_PREFIX = re.compile(r"^(?:functions?|default_api|tools?|api|mcp)[.:/]+")

# Marks that no person writes by hand: whatever follows one of them is meant as a call.
_MARK = re.compile(
    r"<\|?/?(?:tool_calls?|tool[_▁]calls?[_▁](?:begin|end)|function_calls?|tool_use|python_tag|"
    r"tool|invoke|action)\|?>|<[|｜]tool[▁_]calls?[▁_]begin[|｜]>|"
    r"\[TOOL_CALLS\]|\[TOOL_REQUEST\]|<function[=\s]|<invoke\s|"
    r"<\|channel\|>\s*commentary\s+to=|```(?:tool_code|tool_calls?|function_calls?|tool)\b|"
    r"^[ \t]*Action:\s",
    re.MULTILINE,
)
# One that never ends is matched too, so that it is looked for only once; it is no fence.
_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?P<lang>[\w-]*)[^\n]*\n(?P<body>.*?)(?:^[ \t]*```[ \t]*$|(?P<endless>\Z))",
    re.MULTILINE | re.DOTALL,
)
_CALL_FENCES = ("tool_code", "tool_call", "tool_calls", "function_call", "function_calls", "tool")
_SAMPLE = re.compile(
    r"\b(?:examples?|for instance|e\.g\.|like this|like so|looks? like|"
    r"would (?:look|write|call|be)|you (?:can|could|would|call|write|use|may|need)|syntax|how to|"
    r"template|sample|snippet|schema|format|documentation|log|means|replace|placeholder|suppose|"
    r"zum beispiel|z\. ?b\.|beispiel|so ruf\w*|por ejemplo|ejemplo|par exemple|exemple|"
    r"por exemplo|exemplo)\b",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"^\W*$|^<[^<>]*>$|^\{[^{}]*\}$|^\[[^\[\]]*\]$|"
    r"^(?:your|the|some) (?:task|prompt|text)\b.{0,12}$|"
    r"^(?:task|text|string|todo|xxx|foo|bar)$|^research x$",
    re.IGNORECASE,
)
LEAD_IN = 200
"""Characters of prose that may stand beside a fence for it to be meant as a call."""


def textual_call(text: str, tools: Collection[str]) -> list[Call]:
    """Find the calls of offered tools that `text` makes in words, in order; empty without any."""
    known = {_loosely(name): name for name in tools}
    if len(text) > LONGEST_TEXT or not _names_any(text, known):
        return []
    fences = [found for found in _FENCE.finditer(text) if found["endless"] is None]
    outside = _FENCE.sub(lambda found: "\n" if found["endless"] is None else found[0], text)
    marked = _MARK.search(outside) or any(f"<{name}>" in outside for name in tools)
    if marked or any(f["lang"].lower() in _CALL_FENCES for f in fences):
        if fences and not marked:
            text = "\n".join(f["body"] for f in fences if f["lang"].lower() in _CALL_FENCES)
        elif _SAMPLE.search(_around(outside)):
            return []
        return _wanted(_marked(text, known))
    bodies = [fence["body"] for fence in fences]
    if bodies:
        around = outside.strip()
        if len(around) > LEAD_IN or _SAMPLE.search(around):
            return []
        found = [call for body in bodies for call in _plain(body, known)]
        return _wanted(found or _plain(outside, known))
    if _SAMPLE.search(_around(outside)):
        return []
    return _wanted(_plain(text, known))


def _names_any(text: str, known: Collection[str]) -> bool:
    plain = _loosely(text)
    return any(name in plain for name in known)


def _around(text: str) -> str:
    """The prose before the first sign of a call."""
    cut = re.search(r"[{<\[`]|(?<!\w)\w+\(", text)
    return text[: cut.start()] if cut else text


def _wanted(calls: list[Call]) -> list[Call]:
    """Drop repetitions and samples with placeholders for arguments."""
    found: list[Call] = []
    for name, arguments in calls:
        values = json.loads(arguments)
        texts = [value for value in values.values() if isinstance(value, str)]
        if texts and all(_PLACEHOLDER.match(value.strip()) for value in texts):
            continue
        if (name, arguments) not in found:
            found.append((name, arguments))
    return found[:MOST_CALLS]


def _marked(text: str, known: dict[str, str]) -> list[Call]:
    """Read the formats with marks; what stands between them is read like plain text."""
    for reader in (
        _xml_parameters,
        _arg_pairs,
        _name_and_arguments,
        _named_tags,
        _harmony,
        _react,
        _named_then_json,
    ):
        if found := _first(reader(text, known)):
            return found
    return _plain(re.sub(r"<[|｜]?/?[\w▁]+[|｜]?>|\[/?TOOL_\w+\]|```\w*", "\n", text), known)


def _plain(text: str, known: dict[str, str]) -> list[Call]:
    return _first(_json_calls(text, known)) or _first(_python_calls(text, known))


def _first(calls: Iterator[Call]) -> list[Call]:
    """As many as are made, found without reading on."""
    return list(islice(calls, MOST_CALLS))


# JSON, wherever an object or list begins at the start of a line


def _json_calls(text: str, known: dict[str, str]) -> Iterator[Call]:
    decoder = json.JSONDecoder(strict=False)
    position = 0
    opener = re.compile(r"(?:^|[\n;])[ \t]*(?=[{\[])|(?<=[}\]])[ \t,]*(?=[{\[])")
    while (start := opener.search(text, position)) is not None:
        position = max(start.end(), position + 1)
        try:
            value, end = decoder.raw_decode(text, start.end())
        except (ValueError, RecursionError):
            continue
        # Something of a sentence after it: it is spoken about, not made.
        line = text[end : (text.find("\n", end) + 1 or len(text) + 1) - 1].strip()
        if re.match(r"\w", line):
            continue
        yield from _from_value(value, known)
        position = end


def _from_value(value: Any, known: dict[str, str], depth: int = 0) -> Iterator[Call]:
    if depth > 4:
        return
    if isinstance(value, list):
        for item in value:
            yield from _from_value(item, known, depth + 1)
        return
    if not isinstance(value, dict):
        return
    for key in _NAME_KEYS:
        name = _known(value.get(key), known)
        if name:
            yield name, _arguments(value, key)
            return
    if len(value) == 1:
        ((key, inner),) = value.items()
        name = _known(key, known)
        if name and isinstance(inner, dict):
            yield name, json.dumps(inner, ensure_ascii=False)
            return
    for inner in value.values():
        yield from _from_value(inner, known, depth + 1)


def _arguments(value: dict[str, Any], name_key: str) -> str:
    for key in _ARGUMENT_KEYS:
        if key in value and key != name_key:
            return _as_object(value[key])
    rest = {k: v for k, v in value.items() if k not in (name_key, "type", "id", "call_id")}
    return json.dumps(rest, ensure_ascii=False)


def _as_object(raw: Any) -> str:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw, strict=False)
        except (ValueError, RecursionError):
            return json.dumps({"task": raw}, ensure_ascii=False)
    return json.dumps(raw if isinstance(raw, dict) else {}, ensure_ascii=False)


# Calls in the syntax of Python, alone on their lines


def _python_calls(text: str, known: dict[str, str]) -> Iterator[Call]:
    names = "|".join(re.escape(name) for name in known.values())
    start = re.compile(
        rf"^[ \t]*(?:\w+[ \t]*=[ \t]*)?(?P<call>\[?[ \t]*(?:await[ \t]+)?(?:print\()?"
        rf"(?:\w+[.])?(?:{names})\()",
        re.MULTILINE,
    )
    position = 0
    while (found := start.search(text, position)) is not None:
        source, end = _balanced(text, found.start("call"))
        position = max(end, found.end())
        rest = text[end : (text.find("\n", end) + 1 or len(text) + 1) - 1].strip(" \t;,.")
        if source and not rest:
            yield from _from_source(source.removeprefix("await").strip(), known)


def _balanced(text: str, start: int) -> tuple[str, int]:
    """The bracketed expression from `start`, strings skipped; empty when it never ends."""
    depth, position, quote = 0, start, ""
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\":
                position += 1
            elif text.startswith(quote, position):
                position += len(quote) - 1
                quote = ""
        elif char in "\"'":
            quote = char * 3 if text.startswith(char * 3, position) else char
            position += len(quote) - 1
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                return text[start : position + 1], position + 1
        position += 1
    return "", len(text)


def _from_source(source: str, known: dict[str, str]) -> Iterator[Call]:
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = _known(ast.unparse(node.func), known)
            if name:
                yield name, json.dumps(_keywords(node), ensure_ascii=False)


def _keywords(node: ast.Call) -> dict[str, Any]:
    values: dict[str, Any] = {}
    # One positional argument can only be the one that every tool needs.
    if len(node.args) == 1 and not isinstance(node.args[0], ast.Dict):
        values["task"] = _literal(node.args[0])
    elif len(node.args) == 1:
        literal = _literal(node.args[0])
        values.update(literal if isinstance(literal, dict) else {})
    for keyword in node.keywords:
        if keyword.arg:
            values[keyword.arg] = _literal(keyword.value)
    return {key: value for key, value in values.items() if value is not None}


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return node.id == "true"
    try:
        value = ast.literal_eval(node)
        json.dumps(value)
    except (ValueError, TypeError, RecursionError, SyntaxError):
        return None
    return value


# Formats with marks


def _xml_parameters(text: str, known: dict[str, str]) -> Iterator[Call]:
    """`<invoke name="x"><parameter name="k">v</parameter>` and `<function=x><parameter=k>v`."""
    block = re.compile(
        r"<(?:invoke|function|tool_call|tool)(?:\s+name=[\"']?|=)(?P<name>[\w.:/-]+)[\"']?\s*>"
        r"(?P<body>.*?)(?=</(?:invoke|function|tool_call|tool)>|<(?:invoke\s|function=)|\Z)",
        re.DOTALL,
    )
    pair = re.compile(
        r"<(?:parameter|param|arg|argument)(?:\s+name=[\"']?|=)(?P<key>\w+)[\"']?\s*>"
        r"(?P<value>.*?)</(?:parameter|param|arg|argument)>",
        re.DOTALL,
    )
    for found in block.finditer(text):
        name = _known(found["name"], known)
        if not name:
            continue
        pairs = {p["key"]: _value(p["value"]) for p in pair.finditer(found["body"])}
        yield name, json.dumps(pairs, ensure_ascii=False) if pairs else _object_in(found["body"])


def _arg_pairs(text: str, known: dict[str, str]) -> Iterator[Call]:
    """`<tool_call>x<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>`."""
    block = re.compile(r"<tool_call>\s*(?P<name>[\w.]+)\s*(?P<body><arg_key>.*?)</tool_call>", re.S)
    pair = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
    for found in block.finditer(text):
        if name := _known(found["name"], known):
            pairs = {key.strip(): _value(value) for key, value in pair.findall(found["body"])}
            yield name, json.dumps(pairs, ensure_ascii=False)


def _name_and_arguments(text: str, known: dict[str, str]) -> Iterator[Call]:
    """`<name>x</name><arguments>{...}</arguments>`."""
    block = re.compile(
        r"<(?P<tag>name|tool_name|tool)>\s*(?P<name>[\w.]+)\s*</(?P=tag)>\s*"
        r"<(?P<args>arguments|parameters|args|input|params)>(?P<body>.*?)</(?P=args)>",
        re.DOTALL,
    )
    for found in block.finditer(text):
        if name := _known(found["name"], known):
            yield name, _object_in(found["body"])


def _named_tags(text: str, known: dict[str, str]) -> Iterator[Call]:
    """`<x><k>v</k></x>`, where x is a tool."""
    for name in known.values():
        block = re.compile(rf"<{re.escape(name)}>(?P<body>.*?)</{re.escape(name)}>", re.DOTALL)
        for found in block.finditer(text):
            pairs = re.findall(r"<(\w+)>(.*?)</\1>", found["body"], re.DOTALL)
            if pairs:
                values = {key: _value(value) for key, value in pairs}
                yield name, json.dumps(values, ensure_ascii=False)
            else:
                yield name, _object_in(found["body"])


def _harmony(text: str, known: dict[str, str]) -> Iterator[Call]:
    """`<|channel|>commentary to=functions.x ... <|message|>{...}<|call|>`."""
    block = re.compile(
        r"to=(?P<name>[\w.]+)[^{]{0,200}?<\|message\|>(?P<body>.*?)(?:<\|call\|>|\Z)", re.DOTALL
    )
    for found in block.finditer(text):
        if name := _known(found["name"], known):
            yield name, _object_in(found["body"])


def _react(text: str, known: dict[str, str]) -> Iterator[Call]:
    """`Action: x` and `Action Input: {...}`."""
    block = re.compile(
        r"^[ \t]*Action:[ \t]*(?P<name>[\w.]+)[ \t]*\n\s*Action Input:\s*(?P<body>.*?)"
        r"(?=^[ \t]*(?:Action|Observation|Thought):|\Z)",
        re.MULTILINE | re.DOTALL,
    )
    for found in block.finditer(text):
        if name := _known(found["name"], known):
            yield name, _object_in(found["body"])


def _named_then_json(text: str, known: dict[str, str]) -> Iterator[Call]:
    """A name, marks, then an object: `[TOOL_CALLS]x[ARGS]{...}`, `functions.x:0<|...|>{...}`."""
    mark = r"(?:[\s:]|\d+|\[ARGS\]|\[CALL_ID\]\w*|<[|｜][^<>]*[|｜]>|```json)*"
    for name in known.values():
        block = re.compile(rf"(?<![\w\"']){re.escape(name)}{mark}(?=\{{)")
        for found in block.finditer(text):
            yield name, _object_in(text[found.end() :])


def _object_in(text: str) -> str:
    start = text.find("{")
    if start >= 0:
        try:
            value, _ = json.JSONDecoder(strict=False).raw_decode(text, start)
        except (ValueError, RecursionError):
            return json.dumps({"task": text.strip()}, ensure_ascii=False)
        return json.dumps(value, ensure_ascii=False)
    return json.dumps({"task": text.strip()} if text.strip() else {}, ensure_ascii=False)


def _value(text: str) -> Any:
    """A parameter's value: JSON where it is a number, a truth value or an object, else text."""
    plain = text.strip()
    try:
        value = json.loads(plain, strict=False)
    except (ValueError, RecursionError):
        return plain
    return plain if isinstance(value, str | list) else value


def _known(name: Any, known: dict[str, str]) -> str:
    if not isinstance(name, str):
        return ""
    return known.get(_loosely(_PREFIX.sub("", name.strip())), "")


def _loosely(name: str) -> str:
    """Spellings of one name: `sessions_spawn`, `sessions-spawn`, `SessionsSpawn`."""
    return re.sub(r"[\W_]", "", name).lower()
