"""Signed calls to `/hooks/<name>`: what they start, once, and what they may not."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.acp.v1 import session_pb2 as acp_session
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.app import MIGRATIONS, build
from gateway_svc.retention import remove_old
from gateway_svc.store.schema import hook_calls
from svckit.database import Database
from svckit.errors import StartError
from svckit.settings import ConfigError, load
from svckit.testing import eventually, in_process
from tests.service.gateway.suite import Suite, Turn, suite

KEY = b"a key of hooks, 32 bytes in all."
SECRET = "whsec_" + base64.b64encode(KEY).decode()
CONFIG = """
[hooks.ci]
secret_file = "{secret}"
session_key = "agent:main:hook:direct:{{repository.full_name}}"
text = "/stop: {{repository.full_name}} failed: {{message?}}"
customer_key = "acme"

[hooks.issues]
secret_file = "{plain}"
signature = "github"
only = {{ "@event" = ["issues"], action = ["opened"] }}
text = "Look at #{{issue.number}}: {{issue.title}}"

[hooks.fix]
secret_file = "{secret}"
action = "spawn"
scopes = ["control"]
customer_key = "acme"
harness = "scripted"
cwd = "/srv/web"
permission_mode = "ask"
label = "fix {{issue}}"
text = "Fix {{issue}}"

[hooks.steer]
secret_file = "{secret}"
action = "steer"
scopes = ["control"]
customer_key = "acme"
run_id = "{{run}}"
text = "{{text}}"

[hooks.prompt]
secret_file = "{secret}"
action = "steer"
customer_key = "acme"
acp_session_id = "{{session}}"
text = "{{text}}"

[hooks.slow]
secret_file = "{secret}"
requests_per_minute = 1
text = "hello"
"""


@asynccontextmanager
async def not_served(tmp_path: Path) -> AsyncIterator[Suite]:
    secret, plain = tmp_path / "secret", tmp_path / "plain"
    older = base64.b64encode(b"an older key that still counts..").decode()
    secret.write_text(f"whsec_{older}\n{SECRET}\n")
    plain.write_text("It's a Secret to Everybody\n")
    config = tmp_path / "conveyor.toml"
    config.write_text(CONFIG.format(secret=secret, plain=plain))
    async with suite(tmp_path) as around:
        around.config = config
        yield around


@asynccontextmanager
async def hooked(tmp_path: Path) -> AsyncIterator[Suite]:
    async with not_served(tmp_path) as around, around.serve():
        yield around


def headers(
    body: bytes, call_id: str = "msg_1", *, at: float = 0, key: bytes = KEY
) -> dict[str, str]:
    stamp = str(int(at or time.time()))
    signature = hmac.digest(key, f"{call_id}.{stamp}.".encode() + body, "sha256")
    return {
        "webhook-id": call_id,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


async def call(
    around: Suite, name: str, content: Any, call_id: str = "msg_1", **more: Any
) -> httpx.Response:
    body = json.dumps(content).encode()
    return await around.http.post(
        f"/hooks/{name}", content=body, headers=headers(body, call_id, **more)
    )


async def run_of(around: Suite, run_id: str) -> Any:
    return (await around.stub.GetRun(ss.GetRunRequest(run_id=run_id))).run


FAILED = {"repository": {"full_name": 'acme/web: the "shop"'}, "message": "exit 1"}


async def test_a_call_is_a_message_once(tmp_path: Path) -> None:
    async with hooked(tmp_path) as around:
        first = await call(around, "ci", FAILED)
        assert first.status_code == 202, first.text
        answer = first.json()
        # What comes with the body is no part of the key's grammar, and no command.
        assert answer["session_key"] == "agent:main:hook:direct:acme/web%3A%20the%20%22shop%22"
        run = await run_of(around, answer["run_id"])
        assert run.inputs[0].message.parts[0].text.startswith('/stop: acme/web: the "shop" failed')
        assert run.spec.customer_key == "acme"
        assert dict(run.spec.labels) == {"hook": "ci"}
        assert run.inputs[0].request_id.startswith("hook-")

        # Sent again, as senders do, with a new time: the same run, also when two come at once.
        again, other = await asyncio.gather(
            call(around, "ci", FAILED, at=time.time() + 60), call(around, "ci", FAILED)
        )
        for each in (again, other):
            assert each.status_code == 202
            assert each.json() == answer | {"deduplicated": True}
        new = await call(around, "ci", FAILED, "msg_2")
        assert new.json()["run_id"] != answer["run_id"]
        changed = await call(around, "ci", FAILED | {"message": "exit 2"})
        assert changed.status_code == 409
        assert changed.json()["error"]["reason"] == "REQUEST_ID_REUSED"
        assert len((await around.stub.ListRuns(ss.ListRunsRequest())).runs) == 2


async def test_what_was_answered_is_known_for_weeks(tmp_path: Path) -> None:
    async with not_served(tmp_path) as around:
        async with around.serve():
            answer = (await call(around, "ci", FAILED)).json()
        database = await Database.open(
            str(tmp_path / "gateway.db"), migrations=MIGRATIONS, name="gateway"
        )
        now = time.time_ns() // 1000
        day = 86_400 * 1_000_000
        # Longer than the scheduler knows request ids, or anybody sends a webhook again.
        await remove_old(database, around.settings.retention, now + 29 * day)
        calls = sa.select(sa.func.count()).select_from(hook_calls)
        assert await database.run(lambda db: db.scalar(calls)) == 1
        await database.close()
        async with around.serve():
            again = await call(around, "ci", FAILED)
            assert again.json() == answer | {"deduplicated": True}


async def test_a_bad_signature_is_told_nothing(tmp_path: Path) -> None:
    async with hooked(tmp_path) as around:
        body = json.dumps(FAILED).encode()
        good = headers(body)
        without = {name: value for name, value in good.items() if name != "webhook-id"}
        told = set()
        for name, given, sent in (
            ("ci", {}, body),
            ("ci", without, body),
            ("ci", headers(body, key=b"another key, 32 bytes in all too"), body),
            ("ci", good, body + b" "),
            ("ci", headers(body, at=time.time() - 301), body),
            ("ci", headers(body, at=time.time() + 400), body),
            ("ci", {"Authorization": "Bearer whatever"}, body),
            ("nothing", good, body),
            ("issues", good, body),
            ("issues", {"X-Hub-Signature-256": "sha256=" + "0" * 64}, body),
            ("ci", good, b"not json"),
        ):
            refused = await around.http.post(f"/hooks/{name}", content=sent, headers=given)
            assert refused.status_code == 401, (name, given)
            told.add(refused.text)
        assert len(told) == 1, "nobody learns which hooks there are, or what was wrong"
        assert (await around.http.get("/hooks/ci")).status_code == 404
        assert not (await around.stub.ListRuns(ss.ListRunsRequest())).runs


async def test_calls_of_github(tmp_path: Path) -> None:
    async with hooked(tmp_path) as around:

        async def github(content: Any, event: str = "issues") -> httpx.Response:
            body = json.dumps(content).encode()
            signature = hmac.digest(b"It's a Secret to Everybody", body, "sha256").hex()
            given = {"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Event": event}
            return await around.http.post("/hooks/issues", content=body, headers=given)

        issue = {"action": "opened", "issue": {"number": 7, "title": "It is slow"}}
        taken = await github(issue)
        assert taken.status_code == 202, taken.text
        assert taken.json()["session_key"] == "agent:main:hook:direct:issues"
        run = await run_of(around, taken.json()["run_id"])
        assert run.inputs[0].message.parts[0].text == "Look at #7: It is slow"
        assert run.spec.customer_key == "hook:issues"
        again = await github(issue)
        assert again.json()["run_id"] == taken.json()["run_id"]
        for other in (issue | {"action": "closed"}, {"zen": "ping"}):
            ignored = await github(other)
            assert (ignored.status_code, ignored.json()) == (200, {"ignored": True})
        assert (await github(issue | {"n": 1}, "issue_comment")).json() == {"ignored": True}
        assert len((await around.stub.ListRuns(ss.ListRunsRequest())).runs) == 1


async def test_a_call_opens_a_coding_agent_with_a_task(tmp_path: Path) -> None:
    async with hooked(tmp_path) as around:

        def spawned(request: acp.SpawnSessionRequest) -> acp.SpawnSessionResponse:
            session = acp_session.AcpSession(acp_session_id="acp-1", spec=request.spec)
            session.state = acp_session.ACP_SESSION_STATE_STARTING
            session.spec.session_key = "agent:scripted:acp:acp-1"
            return acp.SpawnSessionResponse(session=session)

        around.acp.always("SpawnSession", spawned)
        for _ in range(2):
            taken = await call(around, "fix", {"issue": "#7"})
            assert taken.status_code == 202, taken.text
            answer = taken.json()
            assert answer["acp_session_id"] == "acp-1"
            assert answer["session_key"] == "agent:scripted:acp:acp-1"
        [asked] = around.acp.calls["SpawnSession"]
        assert asked.return_starting
        assert asked.spec.customer_key == "acme"
        assert (asked.spec.harness_id, asked.spec.cwd) == ("scripted", "/srv/web")
        assert asked.spec.permission_mode == acp_session.PERMISSION_MODE_ASK
        assert asked.spec.label == "fix #7"
        run = await run_of(around, answer["run_id"])
        assert run.spec.queue == "acp"
        assert run.inputs[0].message.parts[0].text == "Fix #7"

        # Steering it is its next prompt; another customer's is not there.
        known = spawned(asked).session
        known.state = acp_session.ACP_SESSION_STATE_READY
        around.acp.queue("GetSession", acp.GetSessionResponse(session=known))
        steered = await call(around, "prompt", {"session": "acp-1", "text": "smaller steps"})
        assert steered.status_code == 202, steered.text
        known.spec.customer_key = "evil"
        around.acp.queue("GetSession", acp.GetSessionResponse(session=known))
        hidden = await call(around, "prompt", {"session": "acp-1", "text": "mine"}, "msg_2")
        assert hidden.status_code == 404
        assert hidden.json()["error"]["reason"] == "ACP_SESSION_NOT_FOUND"


async def test_a_call_steers_a_run(tmp_path: Path) -> None:
    async with hooked(tmp_path) as around:
        enough = asyncio.Event()

        async def wait(turn: Turn) -> Any:
            await enough.wait()
            return turn.reply("done")

        around.agent.on("work", wait)
        sent = await around.send("desk", "work", customer_key="acme")
        run_id = sent.accepted.run.run_id
        await eventually(lambda: around.agent.started == ["work"])
        content = {"run": run_id, "text": "look at Europe only"}
        for _ in range(2):
            steered = await call(around, "steer", content)
            assert steered.status_code == 202, steered.text
            assert steered.json()["run_id"] == run_id
        missing = await call(around, "steer", {"text": "no run"}, "msg_3")
        assert missing.status_code == 400
        assert missing.json()["error"]["fields"][0]["field"] == "body.run"

        # A run of somebody else is not there for it.
        other = await around.send("elsewhere", "hello", customer_key="evil")
        content = {"run": other.accepted.run.run_id, "text": "mine"}
        assert (await call(around, "steer", content, "msg_4")).status_code == 404
        enough.set()


async def test_bodies_that_do_not_fit(tmp_path: Path) -> None:
    async with hooked(tmp_path) as around:
        for name, content, status, field in (
            ("ci", {"message": "no repository"}, 400, "body.repository.full_name"),
            ("ci", ["a", "list"], 400, "body"),
            ("prompt", {"session": "s", "text": "  "}, 400, "body"),
        ):
            refused = await call(around, name, content, f"msg_{name}_{len(str(content))}")
            assert refused.status_code == status, refused.text
            assert refused.json()["error"]["fields"][0]["field"] == field
        half = b'{"repository": {"full_name": "half of a character: \xed\xa0\x80"}}'
        refused = await around.http.post("/hooks/ci", content=half, headers=headers(half))
        assert refused.status_code == 400, refused.text
        large = b"{" + b" " * (1024 * 1024)
        refused = await around.http.post("/hooks/ci", content=large, headers=headers(large))
        assert refused.status_code == 413
        assert refused.json()["error"]["reason"] == "PAYLOAD_TOO_LARGE"
        # A conversation of another customer is not there for a hook either.
        await around.send("agent:main:hook:direct:taken", "hello", customer_key="evil")
        taken = await call(around, "ci", {"repository": {"full_name": "taken"}}, "msg_taken")
        assert taken.status_code == 404
        assert taken.json()["error"]["reason"] == "SESSION_NOT_FOUND"


async def test_too_many_calls_of_a_hook(tmp_path: Path) -> None:
    async with hooked(tmp_path) as around:
        assert (await call(around, "slow", {})).status_code == 202
        refused = await call(around, "slow", {}, "msg_2")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert (await call(around, "ci", FAILED)).status_code == 202


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('text = "x"', "exactly one of secret_env and secret_file"),
        ('secret_env = "A"\nsecret_file = "a"\ntext = "x"', "exactly one of secret_env"),
        ('secret_env = "A"', "hooks.h.text"),
        ('secret_env = "A"\ntext = "x"\naction = "spawn"', "scopes must hold 'control'"),
        (
            'secret_env = "A"\ntext = "x"\naction = "steer"\nrun_id = "{a}"',
            "scopes must hold 'control'",
        ),
        ('secret_env = "A"\ntext = "x"\naction = "steer"', "exactly one of run_id"),
        ('secret_env = "A"\ntext = "x"\nharness = "claude"', "harness does not go with"),
        ('secret_env = "A"\ntext = "x"\nscopes = ["read"]', "scopes must hold 'send'"),
        ('secret_env = "A"\ntext = "x"\nagent = "nobody"', "no agent 'nobody'"),
        ('secret_env = "B"\ntext = "x {a"', r"hooks\.h\.text: has a lone \{"),
        ('secret_env = "NOT_SET"\ntext = "x"', r"hooks\.h\.secret_env: .* NOT_SET is not set"),
        ('secret_env = "A"\ntext = "x"', r"hooks\.h: the secret must have at least 16 bytes"),
    ],
)
async def test_hooks_that_could_not_work(
    tmp_path: Path, table: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A", "c2hvcnQ=")
    monkeypatch.setenv("B", SECRET)
    path = tmp_path / "conveyor.toml"
    path.write_text(f"[hooks.h]\n{table}\n")
    env = {"CONVEYOR_STORE__URL": f"sqlite:///{tmp_path}", "CONVEYOR_GATEWAY__HTTP": "127.0.0.1:0"}
    with pytest.raises((ConfigError, StartError), match=problem):
        async with in_process(build, load(path, env), name="gateway"):
            raise AssertionError("started")
