"""The command with the four real services."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from conveyor_client.supervision.addresses import free_addresses

pytestmark = pytest.mark.system


def config(directory: Path) -> Path:
    http, grpc, scheduler, agent, acp = free_addresses(5)
    path = directory / "conveyor.toml"
    path.write_text(
        f'[store]\nurl = "sqlite:///{directory / "data"}"\n'
        f'[gateway]\nhttp = "{http}"\ngrpc = "{grpc}"\n'
        f'[services]\nscheduler = "{scheduler}"\nagent = "{agent}"\nacp = "{acp}"\n'
    )
    return path


async def conveyor(*arguments: str) -> tuple[int, str, str]:
    """Run the command as a process; exit code, output and errors."""
    return await python("-c", "from conveyor_client.cli import main; main()", *arguments)


async def python(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 50)
    except BaseException:
        process.terminate()  # so that it stops its services
        await process.communicate()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_demo_delegates_and_joins(tmp_path: Path) -> None:
    code, out, err = await conveyor("--config", str(config(tmp_path)), "demo", "--json")
    assert code == 0, err
    documents = [json.loads(line) for line in out.splitlines()]
    told = [
        d["event"]["child_announced"]["announcement"]["result"]
        for d in documents
        if "child_announced" in d.get("event", {})
    ]
    assert [child["status"] for child in told] == ["RUN_STATE_SUCCEEDED"] * 3
    (ended,) = [d["ended"] for d in documents if "ended" in d]
    answer = ended["result"]["reply"]["parts"][0]["text"]
    assert all(child["label"] in answer for child in told)
    tree = documents[-1]
    assert len(tree["nodes"]) == 4
    assert tree["flow"]["usage"]["output_tokens"]
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "stopped"
    # It worked on a directory of its own.
    assert not (tmp_path / "data").exists()


def corrupt(directory: Path, service: str) -> None:
    data = directory / "data"
    data.mkdir()
    (data / f"{service}.db").write_bytes(b"this is no database, however long it is. " * 200)


async def test_a_corrupt_database_is_one_clear_line(tmp_path: Path) -> None:
    corrupt(tmp_path, "gateway")
    code, _, err = await conveyor("--config", str(config(tmp_path)), "up")
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: gateway cannot start: ")
    assert "gateway.db" in last
    assert "Traceback" not in err


@pytest.mark.parametrize("service", ["scheduler", "agent", "gateway"])
async def test_a_service_alone_says_that_its_database_is_corrupt(
    tmp_path: Path, service: str
) -> None:
    corrupt(tmp_path, service)
    code, _, err = await python("-m", f"{service}_svc", "--config", str(config(tmp_path)))
    assert code == 2
    assert f"{service}.db" in err.splitlines()[-1]
    assert "Traceback" not in err
