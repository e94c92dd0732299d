"""External coding agents: what is refused, and what models are told of them."""

from __future__ import annotations

import pytest

from agent_svc.domain import session_texts
from agent_svc.domain import tools as t
from agent_svc.domain.family import Member
from agent_svc.domain.harnesses import Harness, Harnesses, described
from agent_svc.sightings import member
from conveyor.scheduler.v1 import run_pb2

CLAUDE = Harness("claude", "Claude Code", True)
CODEX = Harness("codex", "Codex CLI", False, "codex-acp", "npm i -g codex-acp")
GUESSED = Harness("mine", "mine")


@pytest.mark.parametrize(
    ("known", "wanted", "why", "says"),
    [
        (Harnesses(enabled=False), "claude", "disabled", "switched off"),
        (Harnesses([CLAUDE, CODEX]), "", "unnamed", "Use one of: claude."),
        (Harnesses([CLAUDE], default_id="claude"), "", "", ""),
        (Harnesses([CLAUDE, CODEX]), "claude", "", ""),
        (Harnesses([CLAUDE, CODEX]), "codex", "missing", "installed with: npm i -g codex-acp"),
        (Harnesses([CODEX]), "codex", "missing", "No other is installed either."),
        (Harnesses([CLAUDE, CODEX]), "gemini", "unknown", "'gemini' that may be used here"),
        # What only the configuration says: others may be known to the harness service.
        (Harnesses([GUESSED], complete=False), "gemini", "", ""),
        (Harnesses([GUESSED]), "gemini", "unknown", "Use one of: mine."),
        (Harnesses([GUESSED]), "mine", "", ""),
    ],
)
def test_a_spawn_without_hope_is_refused_in_words(
    known: Harnesses, wanted: str, why: str, says: str
) -> None:
    refusal = known.refusal(wanted)
    assert (refusal.why if refusal else "") == why
    assert says in (refusal.text if refusal else "")


def test_a_list_says_which_can_be_started_and_which_is_the_default() -> None:
    known = Harnesses([CODEX, CLAUDE, GUESSED], default_id="claude")
    assert known.lines() == [
        "claude: Claude Code (default)",
        "mine: mine",
        "Not installed: codex",
    ]
    assert Harnesses([CLAUDE], enabled=False).lines() == []


def test_the_schema_of_a_spawn_names_them_only_where_there_are_some() -> None:
    told = described(["claude", "codex", "claude"], "codex")
    assert told == "for runtime acp, the coding agent (default codex): claude, codex"
    properties = t.schemas(t.ToolRules(0, 1, coding_agents=told))[0].parameters["properties"]
    assert told in properties["agent_id"]["description"]
    assert properties["runtime"]["enum"] == ["subagent", "acp"]
    without = t.schemas(t.ToolRules(0, 1, coding_agents=""))[0].parameters["properties"]
    assert not {"runtime", "cwd"} & set(without)
    assert "acp" not in without["agent_id"]["description"]


def test_a_coding_agent_is_shown_by_its_name() -> None:
    spec = run_pb2.RunSpec(queue="acp", estimate_key="acp/claude", label="fix")
    seen: Member = member(run_pb2.Run(run_id="R1", spec=spec))
    assert (seen.agent_id, seen.model) == ("claude", "")
    assert "acp claude" in session_texts.sessions([seen], 0, 5)
    assert "runtime: acp, claude" in session_texts.described(seen, 0, "fix it", "")
