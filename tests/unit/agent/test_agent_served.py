"""Names of models: what is the same model, and what is another one."""

from __future__ import annotations

import pytest

from agent_svc.domain import forks
from agent_svc.domain.content import Input, text_message
from agent_svc.domain.render import Exchange
from agent_svc.domain.served import same_model


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("gpt-5", ""),
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("gpt-4", "gpt-4-0613"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022"),
        ("claude-opus-4-0", "claude-opus-4-20250514"),
        ("gemini-2.5-flash", "gemini-2.5-flash-preview-05-20"),
        ("command-r", "command-r-08-2024"),
        ("qwen3", "qwen3:latest"),
        ("qwen3:8b", "qwen3:8b"),
        ("meta-llama/llama-3.1-8b-instruct", "llama-3.1-8b-instruct"),
        ("Qwen3-8B-Q4_K_M", "/models/qwen3-8b-q4_k_m.gguf"),
    ],
)
def test_another_name_of_the_same_model(asked: str, served: str) -> None:
    assert same_model(asked, served)
    assert same_model(served or asked, asked)


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("gpt-5", "gpt-4"),
        ("gpt-5", "gpt-5-mini"),
        ("gpt-4o", "gpt-4o-mini-2024-07-18"),
        ("qwen3:8b", "qwen3:4b"),
        ("llama-3.1-70b-instruct", "llama-3.1-8b-instruct"),
        ("claude-sonnet-4", "claude-haiku-4"),
    ],
)
def test_another_model(asked: str, served: str) -> None:
    assert not same_model(asked, served)


def test_a_conversation_that_leaves_no_room_for_the_work_is_not_handed_over() -> None:
    def exchange(size: int) -> Exchange:
        asked = Input("q", text_message("m", "user", "x" * size))
        return Exchange(1, "R", "answered", (asked,), text_message("r", "agent", "fine"))

    assert forks.too_long([], 64_000) == ""
    assert forks.too_long([exchange(1000)] * 50, 64_000) == ""
    note = forks.too_long([exchange(1000)] * 200, 64_000)
    assert "too long to hand over (about 5" in note
    assert "at most 32,000" in note
    assert forks.too_long([exchange(1000)] * 200, 200_000) == ""
    # What a summary stands for is gone, its own text is not.
    summary = Exchange(1, "", "summary", quoted="y" * 200_000)
    assert forks.too_long([summary], 64_000)
