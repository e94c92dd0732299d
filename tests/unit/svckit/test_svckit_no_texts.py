"""Spans say that something failed, and of which kind; never with the text of an exception."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("svckit", "scheduler_svc", "agent_svc", "acp_svc", "gateway_svc", "conveyor_client")
WRITES_TEXTS = ("record_exception", "set_status_on_exception")


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node, node.func.attr


def test_no_span_gets_the_text_of_an_exception() -> None:
    """Left to itself, the library writes it into an event and into the status."""
    seen, wrong = 0, []
    for where, call, name in calls():
        if name == "record_exception":
            wrong.append(where)
        if name not in ("use_span", "start_as_current_span"):
            continue
        first = ast.unparse(call.args[0]) if call.args else ""
        if "NonRecordingSpan" in first or "idtracing" in where:
            continue  # it keeps nothing
        seen += 1
        told = {each.arg: ast.unparse(each.value) for each in call.keywords}
        if any(told.get(keyword) != "False" for keyword in WRITES_TEXTS):
            wrong.append(where)
    assert not wrong
    assert seen >= 3
