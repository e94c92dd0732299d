"""What the Compose files, `.env.example` and the files of `deploy/` say of each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from svckit import service
from svckit.settings import Settings, load
from svckit.telemetry import FLUSH_SECONDS

ROOT = Path(__file__).parents[2]
FILES = ("compose.yaml", "compose.postgres.yaml", "compose.observability.yaml")
TEXTS = {name: (ROOT / name).read_text("utf-8") for name in FILES}
EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
_DEFAULT = re.compile(r"\$\{([A-Z_]+)(?::-([^{}]*(?:\{[a-z_]+\})?)|:\?[^}]*)?\}")


def variables() -> dict[str, set[str]]:
    """Every variable of the Compose files with the defaults that it has there."""
    found: dict[str, set[str]] = {}
    for text in TEXTS.values():
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        for name, default in _DEFAULT.findall("\n".join(lines)):
            found.setdefault(name, set()).add(default)
        for line in lines:
            # A variable that is passed on as it is, if it is set.
            if passed := re.fullmatch(r" +(CONVEYOR_[A-Z_]+):", line):
                found.setdefault(passed[1], set())
    return found


def test_the_example_names_every_variable_with_its_default() -> None:
    listed = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))
    used = variables()
    assert listed.keys() - {"COMPOSE_FILE"} == used.keys()
    active = dict(re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))
    for name, defaults in used.items():
        if name in active:
            assert defaults == {active[name]}, name
        else:
            # Off by default, or made at the first use: the example shows a value that works.
            assert listed[name], name


def test_what_is_passed_on_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip of the pen would keep every service from starting."""
    listed = dict(re.findall(r"^#?(CONVEYOR_[A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))
    fixed = dict(re.findall(r"^ +(CONVEYOR_[A-Z_]+): ([^$\"].*)$", "\n".join(TEXTS.values()), re.M))
    assert {"CONVEYOR_STORE__URL", "CONVEYOR_AGENT__LISTEN"} < fixed.keys()
    settings = load(ROOT / "deploy" / "conveyor.toml", environ=listed | fixed)
    assert settings.gateway.allowed_origins == ("https://conveyor.example.com",)
    # The values of the example are the defaults of the suite, where it has any.
    defaults = Settings.model_validate({})
    assert settings.lanes == defaults.lanes
    assert settings.agent.slots == defaults.agent.slots
    assert settings.acp.max_sessions == defaults.acp.max_sessions
    assert settings.runs == defaults.runs
    assert settings.agents == defaults.agents
    assert settings.gateway.requests_per_minute == defaults.gateway.requests_per_minute


def test_the_grace_is_longer_than_a_stop() -> None:
    """The engine kills what has not stopped by then: turns would be lost instead of handed on."""
    (grace,) = variables()["SUITE_STOP_SECONDS"]
    closing = 4.0  # coding agents and tool servers that do not go at once
    stop = service.SEEN_SECONDS + service.DRAIN_SECONDS + 2 * service.STOP_SECONDS
    assert stop + closing + FLUSH_SECONDS < int(grace)


def test_files_that_are_mounted_exist() -> None:
    mounted = re.findall(r"(\./[\w./-]+)", "\n".join(TEXTS.values()))
    assert "./deploy/conveyor.toml" in mounted
    assert [path for path in mounted if not (ROOT / path).exists()] == []
    # What stands for a secret that nobody has is no secret.
    assert (ROOT / "deploy" / "nothing").read_bytes() == b""


def test_the_configuration_reads_the_secrets_that_are_mounted() -> None:
    toml = (ROOT / "deploy" / "conveyor.toml").read_text("utf-8")
    uncommented = re.sub(r"(?m)^# (?=[\[a-z_]+.*[\]=])", "", toml)
    read = set(re.findall(r"/run/secrets/(\w+)", uncommented))
    given = set(re.findall(r"secrets: \[(.+)\]", TEXTS["compose.yaml"]))
    assert read == {"openai_api_key", "anthropic_api_key", "gemini_api_key", "gateway_token"}
    assert read <= set(re.split(r", ", ", ".join(sorted(given))))
    assert tomllib.loads(toml)["providers"].keys() == {"openai", "anthropic", "gemini"}


def test_another_file_behind_a_secret_makes_the_containers_anew() -> None:
    """Compose compares definitions, in which secrets and configs stand by their names alone: with
    a key file named later in `.env`, `docker compose up` left the agent without a key."""
    text = TEXTS["compose.yaml"]
    (label,) = re.findall(r'conveyor\.files: "([^"]+)"', text)
    parts = text[text.index("\nconfigs:") : text.index("# For building the image only")]
    files = re.findall(r"(?m)^    file: (\S+)$", parts)
    assert len(files) == 5
    assert re.findall(r"\$\{[^}]+\}", label) == files


def test_services_are_asked_and_sent_to_where_they_are() -> None:
    """Of images that no test runs: what one file says about another."""
    observed = TEXTS["compose.observability.yaml"]
    collector = (ROOT / "deploy" / "otel-collector.yaml").read_text("utf-8")
    prometheus = (ROOT / "deploy" / "prometheus.yml").read_text("utf-8")
    assert "http://otel-collector:4317}" in observed
    assert "endpoint: 0.0.0.0:4317" in collector
    assert "endpoint: jaeger:4317" in collector
    services = set(re.findall(r"(?m)^  ([a-z0-9-]+):(?: \{\})?$", "\n".join(TEXTS.values())))
    assert {"otel-collector", "jaeger", "prometheus", "grafana"} <= services
    for name in ("gateway", "scheduler", "scheduler-2", "agent", "acp"):
        assert name in services
        assert re.search(rf"names: \[.*\b{name}\b", prometheus), name
    ports = set(re.findall(r"CONVEYOR_METRICS__[A-Z]+: 0\.0\.0\.0:(\d+)", TEXTS["compose.yaml"]))
    assert ports == set(re.findall(r"port: (\d+)", prometheus))
    sources = ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "conveyor.yaml"
    assert "http://prometheus:9090" in sources.read_text("utf-8")
