"""What is shipped: a source distribution, the wheel that it makes, and a suite from that wheel."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from svckit.testing import free_port
from svckit.version import __version__
from tests.release.environment import install

ROOT = Path(__file__).parents[2]
PACKAGES = (
    *("gen/conveyor", "conveyor_client", "svckit"),
    *("gateway_svc", "scheduler_svc", "agent_svc", "acp_svc"),
)
DATA = {
    "gateway_svc/console/index.html",
    "gateway_svc/console/style.css",
    "gateway_svc/console/js/app.js",
    "gateway_svc/store/migrations/versions/0001_first.py",
    "agent_svc/store/migrations/versions/0001_transcripts.py",
    "acp_svc/store/migrations/versions/0001_sessions.py",
    "agent_svc/domain/probe/prompts.toml",
    "conveyor/py.typed",
    "conveyor_client/py.typed",
    "svckit/py.typed",
}
PROGRAMS = {
    *("conveyor", "conveyor-health"),
    *("gateway-svc", "scheduler-svc", "agent-svc", "acp-svc"),
}
BOUND = 90.0
"""Seconds for a start whose programs are compiled first, on a machine that does other things."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the unpacked source distribution."""
    directory = tmp_path_factory.mktemp("source")
    _build(ROOT, directory, "sdist")
    [archive] = directory.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")
    return directory / f"conveyor_suite-{__version__}"


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that the source distribution makes, without this repository."""
    directory = tmp_path_factory.mktemp("wheel")
    _build(source, directory, "wheel")
    return directory / f"conveyor_suite-{__version__}-py3-none-any.whl"


def _build(source: Path, directory: Path, target: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(directory)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_source_distribution_holds_what_people_read_and_what_makes_the_wheel(
    source: Path,
) -> None:
    held = set(os.listdir(source))
    assert held > {"docs", "protos", "CHANGELOG.md", "LICENSE", "README.md", "constraints.txt"}
    assert not held & {"tests", "scripts", "bench", ".ci"}


def test_the_wheel_holds_the_services_with_their_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        files = {name: packed.read(name) for name in packed.namelist()}
    [commands] = (files[name].decode() for name in files if name.endswith("/entry_points.txt"))
    assert set(re.findall(r"^([a-z-]+) = ", commands, re.MULTILINE)) == PROGRAMS
    shipped = {name: held for name, held in files.items() if ".dist-info/" not in name}
    # Whatever belongs to a package here belongs to it there, just as it is here.
    ours = _tracked(*PACKAGES) - _tracked("svckit/testing")
    assert {name.removeprefix("gen/") for name in ours} == set(shipped)
    assert all((ROOT / name).read_bytes() == shipped[name.removeprefix("gen/")] for name in ours)
    assert set(shipped) > DATA


# Everything starts from files that were never loaded, on machines that do other things as well.
@pytest.mark.timeout(240)
def test_the_wheel_alone_gives_a_suite_that_works_in_an_empty_directory(
    wheel: Path, tmp_path: Path
) -> None:
    """As `pipx install` does it: nothing of this repository is there, nor what it does not name."""
    commands = install(wheel, tmp_path / "environment")
    here = tmp_path / "empty"
    here.mkdir()
    # Files of its user's that have the names of modules were imported instead of these.
    for name in ("queue.py", "svckit.py"):
        (here / name).write_text("raise SystemExit('this is none of yours')")
    http = f"127.0.0.1:{free_port()}"
    environ = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    environ |= {"PATH": f"{commands}{os.pathsep}/usr/bin:/bin", "CONVEYOR_GATEWAY__HTTP": http}
    for variable in ("GATEWAY__GRPC", "SERVICES__SCHEDULER", "SERVICES__AGENT", "SERVICES__ACP"):
        environ[f"CONVEYOR_{variable}"] = f"127.0.0.1:{free_port()}"

    with _up(here, environ) as output, httpx.Client(base_url=f"http://{http}") as client:
        assert client.get("/readyz").json()["ready"], output()
        assert client.get("/v1/server").json()["server"]["version"] == __version__
        assert "<title>Conveyor</title>" in client.get("/").text
        sent = client.post("/v1/sessions/me/messages", json={"text": "[[spawn: a]] [[spawn: b]]"})
        run = sent.json()["accepted"]["run"]["run_id"]
        end = time.monotonic() + BOUND
        while "SUCCEEDED" not in (state := client.get(f"/v1/runs/{run}").json()["run"]["state"]):
            assert time.monotonic() < end, (state, output())
            time.sleep(0.1)
        assert len(client.get(f"/v1/flows/{run}").json()["nodes"]) == 3
    assert output().splitlines()[-2:] == ["stopping", "stopped"]
    assert {path.name for path in here.iterdir()} == {"data", "queue.py", "svckit.py", "log"}
    assert {path.name for path in commands.iterdir()} > PROGRAMS


@contextmanager
def _up(here: Path, environ: Mapping[str, str]) -> Iterator[Callable[[], str]]:
    """Run `conveyor up` for the block and stop it as a terminal does; it has to end well."""
    with (here / "log").open("w+") as log:
        process = subprocess.Popen(
            ["conveyor", "up"],
            cwd=here,
            env=environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

        def output() -> str:
            return (here / "log").read_text()

        try:
            end = time.monotonic() + BOUND
            while "ready in " not in output():
                assert process.poll() is None, output()
                assert time.monotonic() < end, output()
                time.sleep(0.1)
            yield output
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0, output()
        finally:
            if process.poll() is None:
                process.kill()  # its children notice, and end
                process.wait()


def _tracked(*paths: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return {line for line in listed.stdout.splitlines() if (ROOT / line).exists()}
