from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_svc.domain import tools as t


def test_leaves_have_no_tools() -> None:
    assert t.ToolRules(depth=0, max_depth=0).allowed() == []
    assert t.ToolRules(depth=1, max_depth=1).allowed() == []
    assert t.ToolRules(depth=1, max_depth=2).allowed() == list(t.SESSION_TOOLS)


def test_configuration_and_ceiling_both_bind() -> None:
    rules = t.ToolRules(0, 1, agent_tools=(t.SPAWN, t.YIELD), ceiling=(t.YIELD, t.AGENTS))
    assert [tool.name for tool in t.schemas(rules)] == [t.YIELD]


def test_the_default_of_wait_is_told_to_the_model() -> None:
    for default in (True, False):
        spawn = t.schemas(t.ToolRules(0, 1, wait_default=default))[0]
        text = spawn.parameters["properties"]["wait"]["description"]
        assert f"Default {str(default).lower()}." in text


def test_arguments_of_weaker_models_are_taken_as_meant() -> None:
    args = t.read_spawn('{"task": "x", "wait": "false", "label": null, "unknown": 1}')
    assert (args.task, args.wait, args.label) == ("x", False, "")


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "{",
        "[]",
        '{"task": " "}',
        '{"task": 7}',
        '{"task": "x", "runtime": "shell"}',
        '{"task": "x", "timeout_seconds": 0}',
        '{"task": "x", "budget": {"max_tokens": 0}}',
        '{"task": "x", "budget": {"max_cost_usd": -1}}',
        '{"task": "x", "budget": {"max_turns": 3}}',
        '{"task": "x", "wait": "perhaps"}',
    ],
)
def test_wrong_arguments_are_refused_with_a_text_for_the_model(arguments: str) -> None:
    with pytest.raises(t.BadArguments, match=r"\S"):
        t.read_spawn(arguments)


def test_a_label_is_made_from_the_task() -> None:
    assert t.label_of(t.read_spawn('{"task": "research\\n the market"}')) == "research the market"
    assert len(t.label_of(t.SpawnArgs(task="x" * 100))) == t.LABEL_CHARS


NAMES = ("sessions_spawn", "time__now", "time__convert", "files__read")


@pytest.mark.parametrize(
    ("agent", "ceiling", "allowed"),
    [
        ((), (), NAMES),
        (("time__*",), (), ("time__now", "time__convert")),
        (("time__*", "sessions_spawn"), ("time__now",), ("time__now",)),
        (("*",), ("files__*",), ("files__read",)),
        (("time__now",), ("files__*",), ()),
    ],
)
def test_patterns_name_many_tools(
    agent: tuple[str, ...], ceiling: tuple[str, ...], allowed: tuple[str, ...]
) -> None:
    # Depth does not matter: what leaves are not offered is decided by whoever offers it.
    rules = t.ToolRules(1, 1, agent_tools=agent, ceiling=ceiling)
    assert tuple(name for name in NAMES if rules.allows(name)) == allowed
    assert rules.allows_some("time__*") == any(name.startswith("time__") for name in allowed)


_patterns = st.lists(
    st.sampled_from(["*", "time__*", "time__now", "t*", "files__read", "files__*", "sessions_*"]),
    max_size=4,
)


@given(_patterns, _patterns)
def test_a_child_may_what_its_parent_may_and_nothing_else(own: list[str], above: list[str]) -> None:
    parent = t.ToolRules(0, 1, agent_tools=own, ceiling=above)
    child = t.ToolRules(0, 1, ceiling=t.ceiling_of(own, above))
    assert [child.allows(name) for name in NAMES] == [parent.allows(name) for name in NAMES]


def test_a_parent_that_may_use_nothing_in_common_gives_its_child_nothing() -> None:
    # The empty intersection was written as an empty ceiling, which means no ceiling at all.
    ceiling = t.ceiling_of(["sessions_spawn"], ["time__now"])
    assert t.ToolRules(0, 1, ceiling=ceiling).allowed() == []
