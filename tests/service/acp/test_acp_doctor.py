"""The doctor over real gRPC, with harnesses that are well and harnesses that are not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from scripted_bench import SCRIPTED

from acp_svc.app import build
from acp_svc.harness.connection import WALLS
from acp_svc.harness.sandbox import Availability
from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from conveyor.acp.v1 import acp_service_pb2_grpc as acp_grpc
from conveyor.acp.v1 import doctor_pb2 as d
from svckit.grpc import client
from svckit.settings import load
from svckit.testing import in_process

CHECKS = ("COMMAND_FOUND", "VERSION", "STARTS", "INITIALIZE", "AUTHENTICATION", "PERMISSION_MODE")


def with_walls(monkeypatch: pytest.MonkeyPatch, found: Availability) -> None:
    async def availability(*, fresh: bool = False) -> Availability:
        return found

    monkeypatch.setattr(WALLS, "availability", availability)


NO_WALLS = Availability("", "bwrap was not found", "apt-get install -y bubblewrap")


def table(harness_id: str, *flags: str, more: str = "", env: str = "") -> str:
    words = ", ".join(f'"{word}"' for word in (sys.executable, str(SCRIPTED), *flags))
    return f"""
        [acp.harness.{harness_id}]
        command = [{words}]
        {more}
        [acp.harness.{harness_id}.env]
        HOME = "/nonexistent"
        {env}
        """


async def examine(
    tmp_path: Path, head: str, *tables: str, harness_id: str = "", handshake: int = 20
) -> d.DoctorReport:
    path = tmp_path / "conveyor.toml"
    roots = f'workspace_roots = ["{tmp_path}"]\nhandshake_seconds = {handshake}'
    store = f'[store]\nurl = "sqlite:///{tmp_path / "data"}"'
    path.write_text("\n".join([store, "[acp]", roots, head, *tables]))
    async with in_process(build, load(path, environ={})) as service:
        stub = acp_grpc.AcpServiceStub(service.channel)
        answer = await client.call(stub.Doctor(acp_pb.DoctorRequest(harness_id=harness_id)))
        return answer.report


def lines(report: d.DoctorReport, harness_id: str) -> dict[str, d.DoctorCheck]:
    return {
        d.DoctorCheckKind.Name(check.kind).removeprefix("DOCTOR_CHECK_KIND_"): check
        for check in report.checks
        if check.harness_id == harness_id
    }


def marks(checks: Sequence[d.DoctorCheck]) -> str:
    names = {0: "?", d.DOCTOR_STATUS_OK: "+", d.DOCTOR_STATUS_WARNING: "!"}
    names |= {d.DOCTOR_STATUS_FAILED: "x", d.DOCTOR_STATUS_SKIPPED: "-"}
    return "".join(names[check.status] for check in checks)


async def test_a_good_harness_is_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_walls(monkeypatch, NO_WALLS)
    report = await examine(
        tmp_path, 'default_harness = "own"', table("own", "--modes", "auto,ask", "--load")
    )
    assert marks(report.checks) == "+" + "++++++" + "+!"
    assert report.healthy
    assert report.check_time.seconds > 0
    own = lines(report, "own")
    assert tuple(own) == CHECKS
    assert own["VERSION"].message == "1.0", "its own, not that of the interpreter that runs it"
    assert own["INITIALIZE"].message == "scripted 1.0; opens sessions again after a restart"
    assert own["PERMISSION_MODE"].message == "approve-reads; its own mode is 'ask'"
    service = lines(report, "")
    assert service["SANDBOX"].hint == "apt-get install -y bubblewrap"
    assert "only as far as a harness asks" in service["SANDBOX"].message


async def test_with_one_good_harness_the_others_of_the_registry_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with_walls(monkeypatch, NO_WALLS)
    report = await examine(tmp_path, "", table("own"))
    assert report.healthy
    assert marks(list(lines(report, "own").values())) == "++++++"
    missing = [check for check in report.checks if check.code == "ACP_BACKEND_MISSING"]
    assert len(missing) == 17
    assert {check.status for check in missing} == {d.DOCTOR_STATUS_WARNING}
    assert all(check.hint for check in missing)
    # Without it each one missing is what is wrong.
    report = await examine(tmp_path, "")
    assert not report.healthy
    missing = [check for check in report.checks if check.code == "ACP_BACKEND_MISSING"]
    assert {check.status for check in missing} == {d.DOCTOR_STATUS_FAILED}
    assert lines(report, "claude")["COMMAND_FOUND"].hint.endswith(
        "npm install -g @agentclientprotocol/claude-agent-acp"
    )


@pytest.mark.parametrize(
    ("flags", "expected", "code", "said"),
    [
        (["--exit-at", "start:3"], "++x---", "ACP_BACKEND_UNAVAILABLE", "gave up at start"),
        (["--hang-at", "initialize"], "+++x--", "ACP_BACKEND_UNAVAILABLE", "within 1 s"),
        (["--protocol", "2"], "+++x--", "ACP_SESSION_INIT_FAILED", "version 2"),
        (["--auth-at", "new"], "++++x-", "ACP_SESSION_INIT_FAILED", "needs a login"),
        (["--hang-at", "new"], "++++x-", "ACP_SESSION_INIT_FAILED", "within 1 s"),
        (["--modes", "auto,yolo"], "+++++x", "ACP_SESSION_INIT_FAILED", "without asking"),
    ],
)
async def test_what_is_wrong_is_said_where_it_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    expected: str,
    code: str,
    said: str,
) -> None:
    with_walls(monkeypatch, NO_WALLS)
    handshake = 1 if "--hang-at" in flags else 20
    head = 'default_harness = "own"'
    report = await examine(tmp_path, head, table("own", *flags), handshake=handshake)
    checks = list(lines(report, "own").values())
    assert marks(checks) == expected
    assert not report.healthy
    failed = checks[expected.index("x")]
    assert failed.code == code
    assert said in failed.message
    for check in checks[expected.index("x") + 1 :]:
        assert check.message.startswith("not checked, because the check before failed")


async def test_a_login_that_shows_only_at_the_first_prompt_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_walls(monkeypatch, NO_WALLS)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    head = 'default_harness = "claude"'
    report = await examine(tmp_path, head, table("claude"))
    login = lines(report, "claude")["AUTHENTICATION"]
    assert (login.status, login.code) == (d.DOCTOR_STATUS_FAILED, "ACP_SESSION_INIT_FAILED")
    assert "ANTHROPIC_API_KEY" in login.hint
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-value")
    report = await examine(tmp_path, head, table("claude"))
    assert report.healthy
    assert "sk-secret" not in str(report)


async def test_a_sandbox_that_is_required_has_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_walls(monkeypatch, NO_WALLS)
    head = 'default_harness = "own"\nsandbox = "require"'
    report = await examine(tmp_path, head, table("own"))
    assert not report.healthy
    assert marks(list(lines(report, "own").values())) == "++---x"
    assert lines(report, "")["SANDBOX"].status == d.DOCTOR_STATUS_FAILED
    # Nothing needs one when people are asked.
    report = await examine(tmp_path, head + '\npermission_mode = "ask"', table("own"))
    assert report.healthy
    report = await examine(tmp_path, 'default_harness = "own"\nsandbox = "off"', table("own"))
    assert report.healthy
    assert "switched off" in lines(report, "")["SANDBOX"].message
