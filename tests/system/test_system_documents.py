"""What the documents tell people to type works as it stands there.

Addresses become those of the suite under test, and placeholders ids of its own; nothing else is
changed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svckit.settings import load
from tests.system.harness import CLASSIC, CONVEYOR, Suite, clean_environment, run_product

ROOT = Path(__file__).resolve().parents[2]
HOW_TO = ROOT / "docs" / "how-to"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Endless by nature; what comes in this time is enough.
STREAM_SECONDS = 2


def blocks(document: Path, language: str) -> list[str]:
    found = BLOCK.findall(document.read_text(encoding="utf-8"))
    return [text for kind, text in found if kind == language]


def told(document: Path, pattern: str) -> list[str]:
    """Lines of shell that people are told to type, and that `pattern` finds."""
    joined = "".join(blocks(document, "sh")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if re.search(pattern, line)]


def localised(text: str, suite: Suite) -> str:
    text = text.replace("http://127.0.0.1:50050", f"http://{suite.grpc}")
    text = text.replace("127.0.0.1:50050", suite.grpc)
    text = text.replace("http://127.0.0.1:8080", suite.http)
    # The model of the reader's own configuration.
    text = text.replace("model probe local:qwen3", "model probe demo")
    bin_directory = re.compile(r"(?<![\w/])\.venv/bin/")
    text = bin_directory.sub(f"{CONVEYOR.parent}/", text)
    return text.replace(str(CONVEYOR), f"{CONVEYOR} --config {suite.config}")


def typed(text: str, flow_id: str) -> subprocess.CompletedProcess[str]:
    """Type a line. Where nothing of it is for a shell, none is asked."""
    words = shlex.split(text)
    if words[0] == str(CONVEYOR) and not set(text) & set("|&;<>$`()*#\n"):
        return run_product(*words)
    return subprocess.run(
        ["bash", "-c", text],
        cwd=ROOT,
        env=clean_environment() | {"FLOW_ID": flow_id},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def flow_id(suite: Suite) -> str:
    """A finished flow with children."""
    done = suite.cli("send", "--wait", "--json", CLASSIC)
    return str(json.loads(done.stdout.splitlines()[-1])["ended"]["run_id"])


def test_readme_and_quickstart_commands_work(suite: Suite, flow_id: str) -> None:
    commands = told(ROOT / "README.md", r"bin/conveyor")
    commands += told(HOW_TO / "quickstart.md", r"^\.venv/bin/conveyor")
    commands += told(HOW_TO / "use-your-model.md", r"^\.venv/bin/conveyor")
    commands += told(HOW_TO / "why-does-it-wait.md", r"^\.venv/bin/conveyor")
    assert len(commands) >= 14
    for command in commands:
        known = re.sub("FLOW_ID|RUN_ID", flow_id, command)
        done = typed(localised(known, suite), flow_id)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_every_command_of_the_chat_is_in_its_document_and_its_refusals_read_so(
    suite: Suite,
) -> None:
    document = (HOW_TO / "commands.md").read_text(encoding="utf-8")
    forms = suite.cli_json("command", "/help")["data"]["forms"]
    assert len(forms) > 20
    for form in forms:
        assert f"`{form['usage']}`" in document or f"/{form['name']}" in document, form
        assert all(f"`/{alias}`" in document for alias in form.get("aliases", ()))
    for text in ("/model gpt", "/stauts"):
        said = suite.cli("command", text, code=1).stderr
        line = said.removeprefix("error: ").split(" (INVALID_FIELD)")[0].strip()
        assert line in document


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_http_examples_work(suite: Suite, flow_id: str) -> None:
    commands = told(HOW_TO / "call-it-from-anything.md", r"^curl ")
    assert len(commands) >= 8
    for command in commands:
        bound = f"timeout {STREAM_SECONDS} " if "curl -sN" in command else ""
        done = typed(bound + localised(command, suite), flow_id)
        assert done.returncode == (124 if bound else 0), f"{command}\n{done.stderr}"
        assert done.stdout, command
        assert '"error"' not in done.stdout, f"{command}\n{done.stdout}"


def test_grpc_examples_work_with_nothing_but_reflection(suite: Suite, flow_id: str) -> None:
    commands = told(HOW_TO / "call-it-from-anything.md", r"bin/buf ")
    shell = "".join(b for b in blocks(HOW_TO / "call-it-from-anything.md", "sh") if "bin/buf" in b)
    assert len(commands) == 2
    done = typed(localised(shell, suite), flow_id)
    assert done.returncode == 0, done.stderr
    assert "conveyor.gateway.v1.GatewayService/Chat" in done.stdout
    assert "RUN_STATE_SUCCEEDED" in done.stdout


def test_the_python_example_works(suite: Suite) -> None:
    (program,) = blocks(HOW_TO / "call-it-from-anything.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", localised(program, suite)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ended:") == 3
    assert "RUN_NOT_FOUND" in done.stdout


def test_examples_of_the_configuration_are_valid(tmp_path: Path) -> None:
    examples = blocks(HOW_TO / "use-your-model.md", "toml")
    assert len(examples) >= 3
    for example in examples:
        file = tmp_path / "conveyor.toml"
        file.write_text(example, encoding="utf-8")
        assert load(file, environ={}).agents.ids()
