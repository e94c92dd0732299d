"""What stands for people in spans, metrics and logs; and the names that both conventions have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from svckit import conventions, pseudonyms
from svckit.errors import StartError
from svckit.settings import ConfigError, load

KEY = "agent:main:whatsapp:dm:+491701234567"


@pytest.fixture(autouse=True)
def default_key() -> Iterator[None]:
    yield
    pseudonyms.use_key(pseudonyms.DEFAULT_KEY)


def test_a_pseudonym_is_short_stable_and_says_nothing() -> None:
    found = pseudonyms.of(KEY)
    assert len(found) == pseudonyms.DIGITS
    assert int(found, 16) >= 0
    assert found == pseudonyms.of(KEY) != pseudonyms.of(KEY[:-1])
    assert pseudonyms.of("") == ""


def test_another_key_gives_other_pseudonyms(tmp_path: Path) -> None:
    before = pseudonyms.of(KEY)
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    pseudonyms.setup(load(None, {"CONVEYOR_TELEMETRY__HASH_KEY_FILE": str(file)}))
    by_file = pseudonyms.of(KEY)
    pseudonyms.use_key(b"s3cret")
    assert by_file == pseudonyms.of(KEY) != before
    pseudonyms.setup(load(None, {}))
    assert pseudonyms.of(KEY) == before


def test_a_key_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    settings = load(None, {"CONVEYOR_TELEMETRY__HASH_KEY_FILE": str(tmp_path / "none")})
    with pytest.raises(StartError, match=r"telemetry\.hash_key_file"):
        pseudonyms.setup(settings)
    both = {"CONVEYOR_TELEMETRY__HASH_KEY_FILE": "a", "CONVEYOR_TELEMETRY__HASH_KEY_ENV": "B"}
    with pytest.raises(ConfigError, match="not both"):
        load(None, both)


def test_names_follow_genai_and_openinference() -> None:
    said = pseudonyms.of(KEY)
    turn = conventions.agent_turn("coder", KEY)
    assert turn["gen_ai.operation.name"] == "invoke_agent"
    assert turn["openinference.span.kind"] == "AGENT"
    assert turn["gen_ai.conversation.id"] == turn["session.id"] == said
    call = conventions.model_call("openai:gpt-5", "")
    assert call["gen_ai.request.model"] == call["llm.model_name"] == "openai:gpt-5"
    assert call["gen_ai.provider.name"] == "openai"
    assert "session.id" not in call
    assert "gen_ai.provider.name" not in conventions.model_call("demo", KEY)
    answer = conventions.model_answered("gpt-5", read=3, written=4)
    assert answer["gen_ai.usage.input_tokens"] == answer["llm.token_count.prompt"] == 3
    assert answer["llm.token_count.total"] == 7
    tool = conventions.tool_call("sessions_spawn", ["a", "b"])
    assert tool["tool.name"] == "sessions_spawn"
    assert tool["gen_ai.tool.call.id"] == ["a", "b"]
    assert conventions.tool_call("x", ["a"])["gen_ai.tool.call.id"] == "a"
    assert conventions.content(asked="hi")["input.value"] == "hi"
