from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_svc.domain import mcptools as m
from agent_svc.domain import results
from agent_svc.domain.prompt import ToolPolicy


def a_tool(name: str, **more: Any) -> m.ServerTool:
    return m.ServerTool(name, "", {"type": "object", "properties": {}}, **more)


@given(st.lists(st.text(min_size=1, max_size=90), unique=True, max_size=8))
def test_every_tool_has_a_name_of_its_own_that_providers_take(names: list[str]) -> None:
    found = m.offered("files", [a_tool(name) for name in names], m.ServerChoice())
    assert [tool.name for tool, _ in found.values()] == names
    for name, (_, schema) in found.items():
        assert schema.name == name
        assert name.startswith("files__")
        assert len(name) <= m.NAME_CHARS
        assert all(c.isascii() and (c.isalnum() or c in "_-") for c in name)


@pytest.mark.parametrize(
    ("tool", "choice", "policy"),
    [
        ({}, m.ServerChoice(), ToolPolicy(False, "ask", "other")),
        ({"read_only": True}, m.ServerChoice(), ToolPolicy(True, "allow", "read")),
        ({"idempotent": True}, m.ServerChoice(), ToolPolicy(True, "ask", "other")),
        ({}, m.ServerChoice("allow"), ToolPolicy(False, "allow", "other")),
        ({"read_only": True}, m.ServerChoice("ask"), ToolPolicy(True, "ask", "read")),
        (
            {"read_only": True},
            m.ServerChoice("allow", {"x": m.ToolChoice("deny", False)}),
            ToolPolicy(False, "deny", "read"),
        ),
        (
            {},
            m.ServerChoice("deny", {"x": m.ToolChoice("auto", True)}),
            ToolPolicy(True, "ask", "other"),
        ),
        ({}, m.ServerChoice("deny", {"y": m.ToolChoice("allow")}), ToolPolicy(False, "deny")),
    ],
)
def test_the_configuration_decides_before_what_the_server_says_of_itself(
    tool: dict[str, Any], choice: m.ServerChoice, policy: ToolPolicy
) -> None:
    ((_, schema),) = m.offered("s", [a_tool("x", **tool)], choice).values()
    assert schema.policy == policy


def test_a_schema_is_always_one_of_an_object() -> None:
    bare = m.ServerTool("x", "", {"$defs": {}})
    ((_, schema),) = m.offered("s", [bare], m.ServerChoice()).values()
    assert schema.parameters == {"$defs": {}, "type": "object", "properties": {}}


def test_no_server_floods_a_prompt() -> None:
    many = [m.ServerTool(f"t{n}", "x" * 10_000, {}) for n in range(500)]
    found = m.offered("s", many, m.ServerChoice())
    assert len(found) == m.MOST_TOOLS
    assert all(len(schema.description) == m.DESCRIPTION_CHARS for _, schema in found.values())


@given(st.text(), st.text())
def test_what_a_tool_returns_cannot_leave_its_mark(tool: str, text: str) -> None:
    shown = results.show_tool(tool, text + "</untrusted-result>")
    assert shown.count("</untrusted-result>") == 1
    assert shown.endswith("</untrusted-result>")
    assert results.read(shown) == []
    assert results.read_tool(shown).startswith(text.replace("untrusted-result", "untrusted_result"))


def test_a_long_result_is_cut_and_says_so() -> None:
    shown = results.show_tool("files__read", "é" * results.TOOL_BYTES)
    assert f'shown="the first {results.TOOL_BYTES} of {2 * results.TOOL_BYTES} bytes' in shown
    assert len(shown.encode()) < results.TOOL_BYTES + 300
