"""What a harness in a sandbox can do, with the real one of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scripted_bench import OWNER, PATIENT, Follower, opened, order, tell

from acp_svc.domain.permissions import PermissionMode
from acp_svc.harness.connection import WALLS, Connection
from acp_svc.harness.sandbox import Availability, Sandbox
from acp_svc.harness.types import Cause, PromptFailed
from svckit.errors import AcpSessionInitFailed
from svckit.testing import eventually

READS, DENY = PermissionMode.APPROVE_READS, PermissionMode.DENY_ALL


@pytest.fixture(autouse=True)
async def _walls() -> None:
    found = await WALLS.availability()
    if not found.bwrap:
        pytest.skip(f"no sandbox here: {found.problem}; {found.hint}")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_it_reads_everything_and_writes_nothing_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret.txt").write_text("old")
    fields = {"permissions": READS, "sandbox": "auto"}
    async with opened(tmp_path, "--load", **fields) as connection:
        assert connection.opened.sandboxed
        (tmp_path / "work" / "notes.txt").write_text("to be read")
        # It would write without asking, and even where everybody says yes.
        said = await tell(
            connection,
            "peek notes.txt ;; ask-nothing new.txt x ;; write notes.txt y ;;"
            " ask-nothing ../home/secret.txt z ;; ask-nothing /etc/conveyor-was-here x ;;"
            " run echo mine > /tmp/mine && cat /tmp/mine ;; cwd",
        )
        denied = "Read-only file system"
        assert said == [
            "read notes.txt: to be read",
            f"failed new.txt: {denied}",
            f"failed notes.txt: {denied}",
            f"failed ../home/secret.txt: {denied}",
            f"failed /etc/conveyor-was-here: {denied}",
            "ran: mine",
            str(tmp_path / "work"),
        ]
        upstream_id = connection.opened.upstream_id
    assert os.listdir(tmp_path / "work") == ["notes.txt"]
    assert (tmp_path / "home" / "secret.txt").read_text() == "old"
    assert "mine" not in os.listdir("/tmp")
    # Its own state is kept: the session can be opened again, shut in or not.
    async with opened(tmp_path, "--load", upstream_id=upstream_id) as connection:
        assert connection.opened.how == "loaded"
        assert not connection.opened.sandboxed


async def test_root_inside_cannot_take_the_walls_down(tmp_path: Path) -> None:
    async with opened(tmp_path, permissions=DENY, sandbox="auto") as connection:
        said = await tell(
            connection,
            "run mount -o remount,rw,bind / ; touch escaped ;;"
            " run test -w /proc/sys/kernel/domainname ; echo settings $? ;;"
            " run ls -A /run/user ; grep CapEff /proc/self/status",
        )
    assert os.listdir(tmp_path / "work") == []
    assert "settings 1" in said[1]
    assert said[2].split()[1:] in (["CapEff:", "0" * 16], ["CapEff:", f"{2:016}"]), said


async def test_temporary_files_work_wherever_they_were_to_be(tmp_path: Path) -> None:
    # What a service is told of them may lie where nothing can be written: Claude Code ended then.
    (tmp_path / "own").mkdir()
    env = {"TMPDIR": str(tmp_path / "own")}
    async with opened(tmp_path, permissions=DENY, sandbox="auto", env=env) as connection:
        (said,) = await tell(connection, "run mktemp")
    assert said.startswith("ran: /tmp/tmp."), said
    assert os.listdir(tmp_path / "own") == []


async def test_what_it_makes_at_home_works_and_does_not_last(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "data").mkdir()
    (home / "link").symlink_to("data")
    state = ["--state", str(home / ".elsewhere"), "--load"]
    async with opened(tmp_path, *state, permissions=DENY, sandbox="auto") as connection:
        said = await tell(
            connection,
            "ask-nothing ../home/new.txt x ;; ask-nothing ../home/link/a.txt x ;; run ls -a ~",
        )
        assert said[:2] == [
            "wrote ../home/new.txt",
            "failed ../home/link/a.txt: Read-only file system",
        ]
        assert "new.txt" in said[2]
        upstream_id = connection.opened.upstream_id
    assert sorted(os.listdir(home)) == [".scripted", "data", "link"]
    async with opened(tmp_path, *state, upstream_id=upstream_id) as connection:
        assert connection.opened.how == "new"


async def test_who_may_write_is_not_shut_in(tmp_path: Path) -> None:
    for permissions in (PermissionMode.ASK, PermissionMode.APPROVE_ALL):
        fields = {"permissions": permissions, "sandbox": "require"}
        async with opened(tmp_path, **fields) as connection:
            assert not connection.opened.sandboxed
            assert await tell(connection, "write a.txt x") == ["wrote a.txt"]
    async with opened(tmp_path, permissions=DENY, sandbox="off") as connection:
        assert not connection.opened.sandboxed


async def test_nothing_of_it_survives_its_end(tmp_path: Path) -> None:
    async with opened(tmp_path, permissions=DENY, sandbox="auto") as connection:
        assert len(await tell(connection, "stray ;; stray-clean")) == 2
        started = _descendants(connection.pid)
        assert len(started) >= 4  # the inner one of the sandbox, the agent, two that left its group
        with pytest.raises(PromptFailed) as caught:
            await connection.prompt("crash 5", Follower(), PATIENT)
        assert (caught.value.cause, caught.value.exit_code) == (Cause.CRASHED, 5)
        # Not even while nobody has stopped it yet.
        await eventually(lambda: not any(alive(pid) for pid in started))


def _descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        more = children.get(todo.pop(), [])
        found.update(more)
        todo += more
    return found


async def test_one_that_has_to_be_shut_in_and_cannot_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*, fresh: bool = False) -> Availability:
        return Availability("", "bwrap was not found", "apt-get install -y bubblewrap")

    monkeypatch.setattr(WALLS, "availability", none)
    with pytest.raises(AcpSessionInitFailed, match="apt-get install -y bubblewrap") as caught:
        await Connection.open(order(tmp_path, permissions=DENY, sandbox="require"), PATIENT, OWNER)
    assert caught.value.metadata["cause"] == "permission_mode"
    async with opened(tmp_path, permissions=DENY, sandbox="auto") as connection:
        assert not connection.opened.sandboxed


async def test_a_machine_without_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in (("bwrap", "exit 1"), ("apt-get", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    refuses = await Sandbox().availability()
    assert (refuses.bwrap, refuses.problem) == ("", "bwrap may not make a sandbox here")
    (tmp_path / "bwrap").unlink()
    sandbox = Sandbox()
    missing = await sandbox.availability()
    assert (missing.bwrap, missing.hint) == ("", "apt-get install -y bubblewrap")
    # It is installed meanwhile: the old answer is believed for a while, and not when asked anew.
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "bwrap").chmod(0o755)
    assert not (await sandbox.availability()).bwrap
    assert (await sandbox.availability(fresh=True)).bwrap == str(tmp_path / "bwrap")
