"""Opening sessions in real processes, whatever those do instead."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from scripted_bench import OWNER, PATIENT, opened, order, tell

from acp_svc.domain.modes import Modes
from acp_svc.domain.permissions import PermissionMode
from acp_svc.harness.connection import Connection
from acp_svc.harness.types import Deadlines
from svckit.errors import (
    AcpBackendMissing,
    AcpBackendUnavailable,
    AcpSessionInitFailed,
    ServiceError,
)
from svckit.testing import eventually


async def test_a_new_session_says_what_it_offers(tmp_path: Path) -> None:
    flags = ["--modes", "plan,ask", "--models", "a,b", "--options", "effort=low,high", "--load"]
    async with opened(tmp_path, *flags) as connection:
        got = connection.opened
        assert got.upstream_id.startswith("s-")
        assert (got.how, got.loadable, got.sandboxed) == ("new", True, False)
        assert (got.modes, got.mode) == (("plan", "ask"), "plan")
        assert (got.models, got.model) == (("a", "b"), "a")
        assert got.options == {"effort": "low"}
        assert (got.agent_name, got.agent_version) == ("scripted", "1.0")
        assert connection.alive


@pytest.mark.parametrize("old", [True, False])
async def test_what_is_ordered_is_applied_and_read_back(tmp_path: Path, old: bool) -> None:
    flags = ["--modes", "plan,ask", "--models", "a,b", "--options", "effort=low,high"]
    flags.append("--old-models" if old else "--mode-option")
    asked = {"model": "b", "harness_mode": "ask", "options": {"effort": "high", "gone": "x"}}
    async with opened(tmp_path, *flags, **asked) as connection:
        got = connection.opened
        assert (got.mode, got.model, got.options) == ("ask", "b", {"effort": "high"})
        said = await tell(connection, "mode ;; model ;; option effort")
        assert said == ["mode: ask", "model: b", "effort: high"]


@pytest.mark.parametrize("kind", [(), ("--mode-option",)])
async def test_it_is_taken_out_of_a_mode_that_does_not_ask(
    tmp_path: Path, kind: tuple[str, ...]
) -> None:
    async with opened(tmp_path, "--modes", "auto,ask", *kind) as connection:
        assert connection.opened.mode == "ask"
        assert await tell(connection, "mode") == ["mode: ask"]
    everything = PermissionMode.APPROVE_ALL
    async with opened(tmp_path, "--modes", "auto,ask", *kind, permissions=everything) as connection:
        assert connection.opened.mode == "auto"


def _lives(pids: Path) -> bool:
    # Without the file it was stopped before it came to writing it.
    return pids.exists() and Path(f"/proc/{pids.read_text().split()[1]}").exists()


@pytest.mark.parametrize(
    ("flags", "error", "detail", "words"),
    [
        (["--exit-at", "start:3"], AcpBackendUnavailable, "initialize", "gave up at start"),
        (["--hang-at", "initialize"], AcpBackendUnavailable, "initialize", ""),
        (["--hang-at", "start", "--deaf"], AcpBackendUnavailable, "initialize", ""),
        (["--error-at", "initialize:-32603"], AcpSessionInitFailed, "initialize", "error at"),
        (["--auth-at", "initialize"], AcpSessionInitFailed, "auth_required", "Authentication"),
        (["--protocol", "2"], AcpSessionInitFailed, "initialize", ""),
        (["--protocol", "none"], AcpSessionInitFailed, "initialize", ""),
        (["--exit-at", "new:7"], AcpSessionInitFailed, "crashed", "gave up at new"),
        (["--hang-at", "new"], AcpSessionInitFailed, "timeout", "hanging at new"),
        (["--error-at", "new:-32603"], AcpSessionInitFailed, "initialize", "error at new"),
        (["--auth-at", "new"], AcpSessionInitFailed, "auth_required", "Authentication"),
        (["--id-prefix", "x" * 257], AcpSessionInitFailed, "initialize", ""),
        (["--modes", "auto,yolo"], AcpSessionInitFailed, "permission_mode", ""),
        (["--modes", "auto,ask", "--stubborn"], AcpSessionInitFailed, "permission_mode", ""),
        (["--modes", "auto,ask", "--refuse-mode"], AcpSessionInitFailed, "permission_mode", ""),
        (
            ["--modes", "auto,ask", "--mode-option", "--stubborn"],
            AcpSessionInitFailed,
            "permission_mode",
            "",
        ),
    ],
)
async def test_what_does_not_open_has_its_typed_reason_and_leaves_nothing(
    tmp_path: Path, flags: list[str], error: type[ServiceError], detail: str, words: str
) -> None:
    pids = tmp_path / "pids"
    # Only those that never answer are waited for, and one of them has to greet first.
    seconds = (
        {"new": 2.0, "start": 0.5, "initialize": 0.5}[flags[1]] if "--hang-at" in flags else 20
    )
    short = Deadlines(handshake=seconds, turn=1, quiet=1, cancel=1)
    ordered = order(tmp_path, *flags, "--pids", str(pids), login="run `scripted login`")
    with pytest.raises(error) as caught:
        await asyncio.wait_for(Connection.open(ordered, short, OWNER), 30)
    metadata = caught.value.metadata
    assert metadata.keys() <= set(error.metadata_keys)
    assert metadata["harnessId"] == "scripted"
    assert metadata["check" if error is AcpBackendUnavailable else "cause"] == detail
    assert words in metadata.get("lastWords", "")
    assert ("scripted login" in caught.value.message) is (detail == "auth_required")
    await eventually(lambda: not _lives(pids))


async def test_noise_before_the_greeting_does_no_harm(tmp_path: Path) -> None:
    async with opened(tmp_path, "--noise") as connection:
        assert await tell(connection, "count") == ["prompts: 1"]


async def test_a_program_that_is_not_there_or_cannot_run(tmp_path: Path) -> None:
    ordered = order(tmp_path)
    for command, error in (
        ("surely-not-installed", AcpBackendMissing),
        (str(tmp_path / "broken"), AcpBackendUnavailable),
    ):
        (tmp_path / "broken").write_bytes(b"\x7fELF nonsense")
        (tmp_path / "broken").chmod(0o755)
        with pytest.raises(error) as caught:
            await Connection.open(_with(ordered, command=(command,)), PATIENT, OWNER)
        assert caught.value.metadata["harnessId"] == "scripted"
    (tmp_path / "work").rmdir()
    with pytest.raises(AcpSessionInitFailed, match="directory does not exist"):
        await Connection.open(ordered, PATIENT, OWNER)


def _with(ordered: Any, **fields: Any) -> Any:
    from dataclasses import replace

    return replace(ordered, harness=replace(ordered.harness, **fields))


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        (["--resume", "--load"], "resumed"),
        (["--load"], "loaded"),
        # It says that it can resume, and cannot.
        (["--resume-broken", "--load"], "loaded"),
        (["--load", "--forgetful"], "new"),
        ([], "new"),
    ],
)
async def test_a_session_is_opened_again_as_well_as_it_can_be(
    tmp_path: Path, flags: list[str], how: str
) -> None:
    flags = [*flags, "--models", "a,b"]
    async with opened(tmp_path, *flags) as connection:
        await tell(connection, "say:hello")
        upstream_id = connection.opened.upstream_id
    again = {"upstream_id": upstream_id, "model": "b"}
    async with opened(tmp_path, *flags, **again) as connection:
        got = connection.opened
        assert got.how == how
        assert (got.upstream_id == upstream_id) is (how != "new")
        # What was set is set again, and what was replayed is not told again.
        said = await tell(connection, "count ;; model")
        assert said == ["prompts: 1" if how == "new" else "prompts: 2", "model: b"]
    if how == "new":
        with pytest.raises(AcpSessionInitFailed) as caught:
            async with opened(tmp_path, *flags, **again, must_resume=True):
                pass
        assert caught.value.metadata["cause"] == "load"


async def test_it_sees_its_own_variables_and_none_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONVEYOR_SECRET", "GIVEN_BY_NAME", "ASKED_FOR", "SSL_CERT_DIR"):
        monkeypatch.setenv(name, f"{name.lower()}-value")
    ordered = order(tmp_path, "--stderr", "$FROM_FILE $OWN", env_names=("ASKED_FOR",))
    (tmp_path / "key").write_text("key-of-a-file\n")
    ordered = _with(
        ordered,
        env_names=("GIVEN_BY_NAME",),
        env={**ordered.harness.env, "OWN": "own-secret-1"},
        env_from_file={"FROM_FILE": str(tmp_path / "key")},
    )
    connection = await Connection.open(ordered, PATIENT, OWNER)
    try:
        names = ["CONVEYOR_SECRET", "GIVEN_BY_NAME", "ASKED_FOR", "OWN", "FROM_FILE"]
        names.append("SSL_CERT_DIR")
        assert await tell(connection, " ;; ".join(f"env {name}" for name in names)) == [
            "CONVEYOR_SECRET is not set",
            "GIVEN_BY_NAME=given_by_name-value",
            "ASKED_FOR=asked_for-value",
            "OWN=own-secret-1",
            "FROM_FILE=key-of-a-file",
            "SSL_CERT_DIR=ssl_cert_dir-value",
        ]
        # What it complains of holds none of them.
        await eventually(lambda: connection.last_words == "*** ***")
    finally:
        await connection.stop()
    (tmp_path / "key").unlink()
    with pytest.raises(AcpBackendUnavailable, match=r"env_from_file\.FROM_FILE names cannot be"):
        await Connection.open(ordered, PATIENT, OWNER)


async def test_one_that_has_the_key_is_told_to_use_it(tmp_path: Path) -> None:
    flags = ["--auth-at", "new", "--need-env", "THE_KEY", "--authenticate"]
    async with opened(tmp_path, *flags, env={"THE_KEY": "key-0123456"}) as connection:
        assert await tell(connection, "count") == ["prompts: 1"]
    with pytest.raises(AcpSessionInitFailed) as caught:
        async with opened(tmp_path, *flags):
            pass
    assert caught.value.metadata["cause"] == "auth_required"


async def test_a_caller_that_leaves_while_it_opens_leaves_no_process(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    ordered = order(tmp_path, "--hang-at", "new", "--pids", str(pids))
    opening = asyncio.create_task(Connection.open(ordered, PATIENT, OWNER))
    await eventually(pids.exists)
    await eventually(lambda: pids.read_text().endswith("\n"))
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not _lives(pids)


async def test_modes_by_data_of_its_own(tmp_path: Path) -> None:
    # `solo` tells an unknown reader nothing; the registry knows that it does not ask.
    modes = Modes(asks=("gentle",), skips=frozenset({"solo"}))
    async with opened(tmp_path, "--modes", "solo,gentle", modes=modes) as connection:
        assert connection.opened.mode == "gentle"
    never = Modes(never="it never asks")
    with pytest.raises(AcpSessionInitFailed, match="approve-all only"):
        async with opened(tmp_path, modes=never):
            pass
