from __future__ import annotations

from pathlib import Path

import pytest

from svckit.settings import ConfigError, Settings, load

WHOLE = """
[store]
url = "sqlite:///./elsewhere"
[lanes.main]
limit = 2
expected_turn_seconds = 3
[lanes.subagent]
limit = 3
[lanes.batch]
limit = 1
[lanes.session]
cap = 10
overflow = "drop_oldest"
debounce_ms = 200
[runs]
max_attempts = 2
lease_seconds = 20
queue_timeout_seconds = 60
run_timeout_seconds = 100
[runs.backoff]
initial_seconds = 0.5
[retention]
events_days = 1
runs_days = 2
request_ids_hours = 3
[customers."web:alice"]
weight = 2
[agents.defaults]
model = "local:qwen3"
queue_mode = "steer"
fallback_models = ["demo"]
[agents.defaults.subagents]
wait = false
max_spawn_depth = 2
announce = "each"
[agents.defaults.subagents.budget]
max_tokens = 1000
[agents.list.main]
prompt = "You help."
[agents.list.coder]
model = "openai:gpt-5"
tools = ["sessions_spawn"]
allow_agents = ["*"]
workspace = "/srv"
subagents = { max_children_per_agent = 2 }
[providers.local]
kind = "openai"
base_url = "http://127.0.0.1:11434/v1"
api_key_env = "LOCAL_KEY"
requests_per_minute = 10
tokens_per_minute = 1000
[mcp.files]
command = ["mcp-files", "--root", "/srv"]
[mcp.web]
url = "http://127.0.0.1:9/mcp"
[acp]
enabled = true
permission_mode = "ask"
default_harness = "claude"
allowed_harnesses = ["claude"]
workspace_roots = ["/srv"]
max_sessions = 2
idle_minutes = 5
permission_timeout_seconds = 60
[acp.harness.mine]
command = ["mine", "--acp"]
env = { A = "b" }
install = "pip install mine"
[gateway]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
allowed_origins = ["https://example.org"]
[gateway.tokens.ops]
token_env = "OPS_TOKEN"
scopes = ["admin"]
[gateway.tls]
cert_file = "c.pem"
key_file = "k.pem"
[channels.team]
kind = "slack"
bot_token_env = "SLACK_TOKEN"
agent = "coder"
allow_from = ["U1"]
queue_mode = "collect"
announce_style = "full"
[[routes]]
channel = "team"
peer = "U1"
agent = "main"
[telemetry]
otlp_endpoint = "http://127.0.0.1:4317"
capture_content = true
[services]
scheduler = "127.0.0.1:1"
[agent]
worker_name = "a-1"
slots = 2
[log]
level = "debug"
format = "json"
"""


def from_text(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Settings:
    path = tmp_path / "c.toml"
    path.write_text(text, "utf-8")
    return load(path, environ or {})


def problems(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        from_text(tmp_path, text, environ)
    return caught.value.problems


def test_every_documented_key_is_accepted(tmp_path: Path) -> None:
    s = from_text(tmp_path, WHOLE)
    assert s.store.file("agent") == Path("elsewhere/agent.db")
    assert {name: lane.limit for name, lane in s.lanes.all().items()} == {
        "main": 2,
        "subagent": 3,
        "acp": 4,
        "batch": 1,
    }
    assert s.runs.backoff.multiplier == 2
    assert s.customers["web:alice"].weight == 2
    assert s.mcp["files"].command == ("mcp-files", "--root", "/srv")
    assert s.channels["team"].credentials == {"bot_token": "SLACK_TOKEN"}
    assert s.gateway.tokens["ops"].scopes == ("admin",)


def test_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    s = load(environ={})
    assert (s.lanes.main.limit, s.lanes.subagent.limit, s.lanes.acp.limit) == (4, 8, 4)
    assert (s.lanes.session.cap, s.lanes.session.overflow, s.lanes.session.debounce_ms) == (
        50,
        "reject",
        1000,
    )
    assert (s.runs.max_attempts, s.runs.lease_seconds, s.runs.run_timeout_seconds) == (3, 15, 900)
    assert (s.gateway.http, s.gateway.grpc) == ("127.0.0.1:8080", "127.0.0.1:50050")
    assert s.services.model_dump() == {
        "scheduler": "127.0.0.1:50051",
        "agent": "127.0.0.1:50052",
        "acp": "127.0.0.1:50053",
    }
    assert s.agents.ids() == ("main",)
    main = s.agents.get("main")
    assert main is not None
    assert (main.model, main.subagents.wait, main.subagents.max_spawn_depth) == ("demo", True, 1)
    assert main.subagents.yield_after_seconds == 20
    assert s.agents.get("other") is None


def test_the_file_in_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conveyor.toml").write_text("[lanes.main]\nlimit = 9\n", "utf-8")
    assert load(environ={}).lanes.main.limit == 9


def test_an_agent_has_the_defaults_under_its_own_keys(tmp_path: Path) -> None:
    coder = from_text(tmp_path, WHOLE).agents.get("coder")
    assert coder is not None
    assert (coder.model, coder.queue_mode, coder.fallback_models) == (
        "openai:gpt-5",
        "steer",
        ("demo",),
    )
    subagents = coder.subagents
    assert (subagents.wait, subagents.max_spawn_depth, subagents.max_children_per_agent) == (
        False,
        2,
        2,
    )
    assert subagents.budget.max_tokens == 1000


def test_the_environment_beats_the_file(tmp_path: Path) -> None:
    s = from_text(
        tmp_path,
        WHOLE,
        {
            "CONVEYOR_LANES__MAIN__LIMIT": "1",
            "CONVEYOR_LANES__EXTRA__LIMIT": "7",
            "CONVEYOR_AGENTS__LIST__CODER__SUBAGENTS__WAIT": "true",
            "CONVEYOR_ACP__ALLOWED_HARNESSES": "claude, codex",
            "CONVEYOR_ACP__WORKSPACE_ROOTS": '["/a", "/b"]',
            "CONVEYOR_PROVIDERS__OTHER__BASE_URL": "http://x",
            "OTHER_VARIABLE": "1",
        },
    )
    assert s.lanes.main.limit == 1
    assert s.lanes.main.expected_turn_seconds == 3
    assert s.lanes.all()["extra"].limit == 7
    coder = s.agents.get("coder")
    assert coder is not None
    assert coder.subagents.wait
    assert coder.subagents.max_children_per_agent == 2
    assert s.acp.allowed_harnesses == ("claude", "codex")
    assert s.acp.workspace_roots == ("/a", "/b")
    assert set(s.providers) == {"local", "other"}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[lanes.main]\nlimit = -1", "lanes.main.limit"),
        ("[lanes.main]\nlimits = 1", "lanes.main.limits"),
        ("[lanes.Main]\nlimit = 1", "lanes"),
        ("[lane.main]\nlimit = 1", "lane"),
        ("[runs]\nlease_seconds = 'x'", "runs.lease_seconds"),
        ("[runs]\nrun_timeout_seconds = inf", "runs.run_timeout_seconds"),
        ("[agents.list.a]\nmodel = ''", "agents.list.a.model"),
        ("[agents.list.a.subagents]\nmax_concurrent = 1", "agents"),
        ("[providers.p]\nbase_url = 'ftp://x'", "providers.p"),
        ("[mcp.m]\ncommand = ['a']\nurl = 'http://x'", "mcp.m"),
        ("[mcp.m]\nurl = 'ftp://x'", "mcp.m"),
        ("[mcp.m]\nurl = 'https://me:pw@x/mcp'", "mcp.m"),
        ("[mcp.m]\nurl = 'http://x'\nenv = { A = 'b' }", "mcp.m"),
        ("[mcp.m]\ncommand = ['a']\nheaders_env = { A = 'B' }", "mcp.m"),
        ("[mcp.a__b]\ncommand = ['a']", "mcp"),
        ("[mcp.m]\ncommand = ['a']\ntools.x.approval = 'never'", "mcp.m.tools.x.approval"),
        ("[agents.defaults.approvals]\n'x*' = 'maybe'", "agents.defaults.approvals"),
        ("[agents.defaults]\napproval_timeout_seconds = 1", "agents.defaults"),
        ("[gateway]\nhttp = 'here'", "gateway.http"),
        ("[gateway.tokens.a]\ntoken_env = 'T'\nscopes = ['root']", "gateway.tokens.a.scopes.0"),
        ("[channels.c]\nkind = 'irc'", "channels.c.kind"),
        ("[channels.c]\nkind = 'slack'\nbot_token = 'x'", "channels.c"),
        ("[[routes]]\nagent = 'nobody'", "routes.0.agent"),
        ("[acp]\npermission_mode = 'yolo'", "acp.permission_mode"),
        ("[store]\nurl = 'mysql://x'", "store"),
        ("[store]\npassword_file = 'x'", "store"),
        ("[store]\nurl = 'postgresql://me:pw@h/db'\npassword_file = 'x'", "store"),
        ("[providers.p]\napi_key_env = 'A'\napi_key_file = 'x'", "providers.p"),
        ("[mcp.m]\nurl = 'http://x'\nenv_from_file = { A = 'b' }", "mcp.m"),
        ("[mcp.m]\ncommand = ['a']\nheaders_file = { A = 'B' }", "mcp.m"),
        ("[mcp.m]\ncommand = ['a']\nenv_from = {A = 'B'}\nenv_from_file = {A = 'b'}", "mcp.m"),
    ],
)
def test_a_wrong_key_is_named_with_its_source(tmp_path: Path, text: str, key: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith((f"{key}: ", f"{key}."))
    assert "c.toml" in found[0]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "[lanes.main]\nlimit = -1\n[log]\nlevel = 'loud'",
        {"CONVEYOR_RUNS__MAX_ATTEMPTS": "99"},
    )
    assert [line.split(":")[0] for line in found] == [
        "lanes.main.limit",
        "runs.max_attempts",
        "log.level",
    ]
    assert "got '99', from CONVEYOR_RUNS__MAX_ATTEMPTS" in found[1]


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("CONVEYOR_LANE__MAIN__LIMIT", "lane: unknown key"),
        ("CONVEYOR_LANES", "lanes: is a table"),
        ("CONVEYOR_LOG__COLOR", "log.color: unknown key"),
    ],
)
def test_an_unknown_variable_is_refused(variable: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(environ={variable: "1"})
    assert variable in str(caught.value)


def test_two_names_of_one_limit(tmp_path: Path) -> None:
    other = "[agents.defaults.subagents]\nmax_concurrent = 2\n"
    assert from_text(tmp_path, other).lanes.subagent.limit == 2
    assert from_text(tmp_path, other + "[lanes.subagent]\nlimit = 2").lanes.subagent.limit == 2
    found = problems(tmp_path, other + "[lanes.subagent]\nlimit = 3")
    assert "max_concurrent and lanes.subagent.limit are the same limit" in found[0]


def test_secrets_are_not_echoed(tmp_path: Path) -> None:
    found = problems(tmp_path, "[gateway.tokens.a]\ntoken_env = 987654321\n")
    assert found[0].startswith("gateway.tokens.a.token_env: ")
    assert "987654321" not in found[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"lanes = [", "is not valid TOML"), (b"\xff\xfe", "is not UTF-8")],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"broken.toml: {says}"):
        load(path, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: cannot be read: No such file"):
        load(tmp_path / "no.toml", {})
