"""What stands for people in spans, metrics and logs; and the names that both conventions have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from svckit import conventions, pseudonyms
from svckit.errors import LeaseLost, StartError
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
    call = conventions.model_call("gemini-3", conventions.PROVIDERS["google"])
    assert call["gen_ai.request.model"] == call["llm.model_name"] == "gemini-3"
    assert (call["gen_ai.provider.name"], call["llm.provider"]) == ("gcp.gemini", "google")
    answer = conventions.model_answered(
        "gpt-5", read=3, written=4, cached=2, stored=1, finish_reason="stop"
    )
    assert answer["gen_ai.usage.input_tokens"] == answer["llm.token_count.prompt"] == 3
    assert answer["gen_ai.usage.cache_read.input_tokens"] == 2
    assert answer["llm.token_count.prompt_details.cache_write"] == 1
    assert answer["llm.token_count.total"] == 7
    assert answer["gen_ai.response.finish_reasons"] == ["stop"]
    tool = conventions.tool_call("sessions_spawn", ["a", "b"])
    assert tool["tool.name"] == "sessions_spawn"
    # Of one call, as the conventions say; several have a name of ours.
    assert "gen_ai.tool.call.id" not in tool
    assert conventions.tool_call("x", ["a"])["gen_ai.tool.call.id"] == "a"


def test_what_was_said_is_text_or_json() -> None:
    said = conventions.asked('[{"role": "user"}]', "hi")
    assert (said["input.value"], said["input.mime_type"]) == ("hi", "text/plain")
    assert said["gen_ai.input.messages"] == '[{"role": "user"}]'
    assert conventions.tool_arguments('{"a": 1}')["input.mime_type"] == "application/json"


def test_what_failed_is_named_without_its_text() -> None:
    assert conventions.error_type(LeaseLost("s3cret")) == "LEASE_LOST"
    assert conventions.error_type(ValueError("s3cret")) == "unexpected"
    assert conventions.error_type(TimeoutError("s3cret")) == "timeout"


NAMES = {
    v for v in vars(conventions).values() if isinstance(v, str) and re.fullmatch(r"\w+\.\S+", v)
}
FAMILIES = re.compile(r"(gen_ai|llm|openinference)\.[a-z_.]+")


@pytest.mark.parametrize(
    "package", ["svckit", "scheduler_svc", "agent_svc", "acp_svc", "gateway_svc", "conveyor_client"]
)
def test_nobody_else_writes_a_name_of_the_conventions_down(package: str) -> None:
    root = Path(conventions.__file__).parents[1]
    found = [
        f"{file.relative_to(root)}:{node.lineno} {node.value}"
        for file in sorted((root / package).rglob("*.py"))
        if file != Path(conventions.__file__)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value in NAMES or FAMILIES.fullmatch(node.value)
    ]
    assert found == []
    assert "gen_ai.agent.name" in NAMES
