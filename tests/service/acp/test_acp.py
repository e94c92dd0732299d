"""The harness service over real gRPC, with programs made for the test."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration

from acp_svc.app import build
from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from conveyor.acp.v1 import acp_service_pb2_grpc as acp_grpc
from conveyor.acp.v1 import doctor_pb2 as d
from conveyor.acp.v1 import session_pb2, task_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from conveyor.scheduler.v1 import worker_service_pb2_grpc as _ws_grpc  # noqa: F401
from svckit.errors import (
    AcpDisabled,
    AcpHarnessNotFound,
    InvalidField,
    StartError,
)
from svckit.grpc import client
from svckit.grpc.status import from_proto
from svckit.settings import Settings, load
from svckit.testing import ScriptedServicer, eventually, in_process, scripted_server


def settings(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "conveyor.toml"
    path.write_text(f'[store]\nurl = "memory:"\n{text}')
    return load(path, environ={})


def program(tmp_path: Path, name: str, body: str) -> Path:
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def statuses(report: d.DoctorReport) -> list[tuple[str, int, int, str]]:
    return [(c.harness_id, c.kind, c.status, c.code) for c in report.checks]


async def examine(config: Settings, harness_id: str = "") -> d.DoctorReport:
    async with in_process(build, config) as service:
        stub = acp_grpc.AcpServiceStub(service.channel)
        answer = await client.call(stub.Doctor(acp_pb.DoctorRequest(harness_id=harness_id)))
        return answer.report


async def test_a_missing_harness_comes_with_its_install_command(tmp_path: Path) -> None:
    config = settings(
        tmp_path,
        f"""
        [acp]
        workspace_roots = ["{tmp_path}"]
        allowed_harnesses = ["own"]
        [acp.harness.own]
        command = ["surely-not-installed"]
        install = "make install-own"
        """,
    )
    report = await examine(config, "own")
    found = report.checks[1]
    assert (found.status, found.code) == (d.DOCTOR_STATUS_FAILED, "ACP_BACKEND_MISSING")
    assert found.hint == "make install-own"
    assert "surely-not-installed" in found.message
    version = report.checks[2]
    assert version.status == d.DOCTOR_STATUS_SKIPPED
    assert version.message == "not checked, because the check before failed: command found"


async def test_a_program_without_a_version_deserves_a_look(tmp_path: Path) -> None:
    silent = program(tmp_path, "silent", "exit 3")
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    config = settings(
        tmp_path,
        f"""
        [acp]
        allowed_harnesses = ["silent", "broken"]
        workspace_roots = ["{tmp_path / "none"}"]
        [acp.harness.silent]
        command = ["{silent}"]
        [acp.harness.broken]
        command = ["{broken}"]
        """,
    )
    report = await examine(config)
    by = {(c.harness_id, c.kind): c for c in report.checks}
    said = by["silent", d.DOCTOR_CHECK_KIND_VERSION]
    assert (said.status, said.code) == (d.DOCTOR_STATUS_WARNING, "ACP_BACKEND_UNAVAILABLE")
    assert "exit code 3" in said.message
    failed = by["broken", d.DOCTOR_CHECK_KIND_VERSION]
    assert (failed.status, failed.code) == (d.DOCTOR_STATUS_FAILED, "ACP_BACKEND_UNAVAILABLE")
    roots = by["", d.DOCTOR_CHECK_KIND_WORKSPACE_ROOTS]
    assert (roots.status, roots.code) == (d.DOCTOR_STATUS_FAILED, "ACP_CWD_NOT_ALLOWED")
    assert "does not exist" in roots.message


async def test_a_program_that_hangs_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acp_svc.machine.VERSION_SECONDS", 0.3)
    pid_file = tmp_path / "pid"
    hangs = program(tmp_path, "hangs", f"sleep 60 & echo $! > {pid_file}; wait")
    config = settings(
        tmp_path,
        f"""
        [acp]
        default_harness = "hangs"
        handshake_seconds = 1
        [acp.harness.hangs]
        command = ["{hangs}"]
        """,
    )
    report = await examine(config)
    assert report.checks[2].status == d.DOCTOR_STATUS_WARNING
    pid = int(pid_file.read_text())
    await eventually(lambda: _gone(pid))


def _gone(pid: int) -> bool:
    try:
        # A killed process that nobody has reaped yet is gone, too.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_switched_off_says_so_and_refuses_the_rest(tmp_path: Path) -> None:
    config = settings(tmp_path, '[acp]\nenabled = false\ndefault_harness = "codex"\n')
    async with in_process(build, config) as service:
        stub = acp_grpc.AcpServiceStub(service.channel)
        report = (await client.call(stub.Doctor(acp_pb.DoctorRequest()))).report
        assert (report.checks[0].status, report.checks[0].code) == (
            d.DOCTOR_STATUS_FAILED,
            "ACP_DISABLED",
        )
        assert {check.status for check in report.checks[1:]} == {d.DOCTOR_STATUS_SKIPPED}
        with pytest.raises(AcpDisabled):
            await client.call(stub.ListHarnesses(acp_pb.ListHarnessesRequest()))
        with pytest.raises(AcpDisabled):
            await client.call(stub.SpawnSession(acp_pb.SpawnSessionRequest()))


async def test_harnesses_are_listed_in_pages(tmp_path: Path) -> None:
    own = program(tmp_path, "own", "echo 1")
    config = settings(
        tmp_path,
        f"""
        [acp]
        allowed_harnesses = ["own"]
        [acp.harness.own]
        command = ["{own}", "--flag"]
        [acp.harness.claude]
        command = ["surely-not-installed"]
        """,
    )
    async with in_process(build, config) as service:
        stub = acp_grpc.AcpServiceStub(service.channel)
        listed: list[acp_pb.Harness] = []
        token = ""
        while True:
            page = await client.call(
                stub.ListHarnesses(acp_pb.ListHarnessesRequest(page_size=5, page_token=token))
            )
            assert len(page.harnesses) <= 5
            listed += page.harnesses
            token = page.next_page_token
            if not token:
                break
        by = {harness.harness_id: harness for harness in listed}
        assert len(by) == len(listed) > 12
        assert by["own"].installed
        assert by["own"].allowed
        assert by["own"].command == f"{own} --flag"
        assert not by["claude"].installed
        assert not by["claude"].allowed
        assert "npm install -g @agentclientprotocol/claude-agent-acp" in by["claude"].install_hint
        with pytest.raises(InvalidField):
            await client.call(stub.ListHarnesses(acp_pb.ListHarnessesRequest(page_token="x")))


async def test_unknown_and_forbidden_harnesses_are_not_found(tmp_path: Path) -> None:
    config = settings(tmp_path, '[acp]\nallowed_harnesses = ["codex"]\n')
    for harness_id in ("nobody", "claude"):
        with pytest.raises(AcpHarnessNotFound) as caught:
            await examine(config, harness_id)
        assert caught.value.metadata == {"harnessId": harness_id}


async def test_a_wrong_catalog_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"acp\.default_harness"):
        await examine(settings(tmp_path, '[acp]\ndefault_harness = "nobody"\n'))


def lease(lease_id: str, task: task_pb2.AcpTask | None) -> ws.LeasedRun:
    leased = ws.LeasedRun()
    leased.lease.lease_id = lease_id
    leased.lease.turn = leased.lease.attempt = 1
    leased.lease.ttl.CopyFrom(Duration(seconds=15))
    leased.run.run_id = f"run-{lease_id}"
    packed = Any()
    if task is not None:
        packed.Pack(task)
    leased.run.spec.task.CopyFrom(packed)
    return leased


async def test_every_leased_run_ends_at_once_with_its_reason(tmp_path: Path) -> None:
    own = program(tmp_path, "own", "echo 1")
    head = f"""
        [acp]
        default_harness = "own"
        workspace_roots = ["{tmp_path}"]
        [acp.harness.own]
        command = ["{own}"]
        [acp.harness.gone]
        command = ["surely-not-installed"]
        install = "make gone"
        """

    def spawn(**spec: str) -> task_pb2.AcpTask:
        return task_pb2.AcpTask(new_session=session_pb2.AcpSessionSpec(**spec))

    tasks = {
        "ACP_HARNESS_NOT_FOUND": spawn(harness_id="nobody"),
        "ACP_BACKEND_MISSING": spawn(harness_id="gone"),
        "ACP_CWD_NOT_ALLOWED": spawn(cwd="/"),
        "ACP_SESSION_NOT_FOUND": task_pb2.AcpTask(acp_session_id="s"),
        "INVALID_FIELD": None,
    }
    failed = await failures(tmp_path, head, tasks)
    assert failed == {reason: (reason, False) for reason in tasks}

    off = {"ACP_DISABLED": spawn(), "also ACP_DISABLED": task_pb2.AcpTask(acp_session_id="s")}
    failed = await failures(tmp_path, "[acp]\nenabled = false\n", off)
    assert set(failed.values()) == {("ACP_DISABLED", False)}


async def failures(
    tmp_path: Path, text: str, tasks: dict[str, task_pb2.AcpTask | None]
) -> dict[str, tuple[str, bool]]:
    """Run the service against a scheduler that leases `tasks`; reasons and retryable by lease."""
    leased = [lease(lease_id, task) for lease_id, task in tasks.items()]
    idle = asyncio.Event()

    async def wait(request: ws.LeaseRunsRequest) -> ws.LeaseRunsResponse:
        await idle.wait()
        return ws.LeaseRunsResponse()

    scheduler = ScriptedServicer("conveyor.scheduler.v1.WorkerService")
    scheduler.queue("LeaseRuns", ws.LeaseRunsResponse(leased_runs=leased))
    scheduler.always("LeaseRuns", wait)
    scheduler.always("FailRun", ws.FailRunResponse())
    async with scripted_server(scheduler) as (address, _):
        config = settings(tmp_path, f'[services]\nscheduler = "{address}"\n{text}')
        async with in_process(build, config):
            await eventually(lambda: len(scheduler.calls["FailRun"]) == len(tasks))
            assert scheduler.calls["LeaseRuns"][0].queue == "acp"
        idle.set()
    return {
        call.lease_id: (from_proto(call.error).reason, call.retryable)
        for call in scheduler.calls["FailRun"]
    }
