"""`conveyor up`: starts, tells, restarts, stops, and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import socket
from contextlib import closing
from pathlib import Path

import httpx

from tests.system.harness import (
    CLASSIC,
    MODULES,
    STOP_BOUND,
    SUCCEEDED,
    Suite,
    chat,
    flow_where,
    replies,
    run_where,
    wait_gone,
)


def test_it_tells_addresses_and_start_time_restarts_what_dies_and_stops(tmp_path: Path) -> None:
    suite = Suite(tmp_path, real=True)
    try:
        suite.start()
        assert set(suite.pids()) == {"up", *MODULES}
        for name in MODULES:
            address = getattr(suite, "grpc" if name == "gateway" else name)
            assert re.search(rf"^ +{name} +{re.escape(address)}$", suite.output, re.MULTILINE)
        assert suite.http in suite.output
        took = re.search(r"^ready in (\d+\.\d) s; Ctrl-C stops all$", suite.output, re.MULTILINE)
        assert took, suite.output
        assert 0.2 < float(took[1]) < 30

        assert httpx.get(f"{suite.http}/healthz").status_code == 200
        assert httpx.get(f"{suite.http}/readyz").status_code == 200
        page = httpx.get(suite.http)
        assert page.status_code == 200
        assert "text/html" in page.headers["content-type"]

        before = len(suite.lines)
        killed = suite.kill("acp")
        assert "killed by signal 9; starting it again" in suite.wait_line("acp killed", 10)
        back = suite.wait_line("acp is back after", after=before)
        pid = suite.pids()["acp"]
        assert pid != killed
        assert f"(process {pid})" in back

        assert suite.stop(signal.SIGINT) < STOP_BOUND
        assert suite.lines[-2:] == ["stopping", "stopped"]
    finally:
        suite.abandon()


def test_nothing_is_left_when_up_itself_is_killed(tmp_path: Path) -> None:
    suite = Suite(tmp_path, real=True)
    try:
        suite.start()
        pids = suite.pids()
        assert set(pids) == {"up", *MODULES}
        suite.kill_up()
        assert wait_gone(suite.pids, STOP_BOUND) == {}
    finally:
        suite.abandon()


def test_nothing_is_left_when_it_is_stopped_while_it_starts(tmp_path: Path) -> None:
    suite = Suite(tmp_path, real=True)
    try:
        suite.launch()
        suite.wait_line("starting", 20)
        assert suite.stop(signal.SIGINT) < STOP_BOUND
        assert "ready in" not in suite.output
    finally:
        suite.abandon()


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    suite = Suite(tmp_path, real=True)
    with closing(socket.socket()) as taken:
        host, _, port = suite.agent.rpartition(":")
        taken.bind((host, int(port)))
        taken.listen()
        done = suite.cli("up", code=2)
    assert suite.pids() == {}
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: agent cannot listen on {suite.agent}: the port is in use")


async def test_state_survives_a_stop_and_a_start(tmp_path: Path) -> None:
    """Also a stop in the middle of long work, which is handed back and costs no attempt."""
    suite = Suite(tmp_path, real=True)
    try:
        suite.start()
        async with suite.client() as client:
            told = await chat(client, CLASSIC, session_key="kept")
            before = await client.flow(told.run_id)
            said = (await client.messages("kept")).messages
            text = "[[spawn: [[sleep: 60s]]]] [[spawn: [[sleep: 60s]]]]"
            long = (await client.send(text, session_key="long")).accepted.run.run_id
            await flow_where(client, long, suspended=1, running=2)
            await client.update_lane("main", 0)
            waiting = await client.send("[[reply: later]]", session_key="kept")
        assert suite.stop(signal.SIGINT) < STOP_BOUND
        assert "was killed" not in suite.output

        suite.start()
        async with suite.client() as client:
            assert await client.flow(told.run_id) == before
            assert list((await client.messages("kept")).messages) == list(said)
            sessions = [s.session_key for s in (await client.sessions()).sessions]
            assert sorted(sessions) == ["kept", "long"]
            # A limit that was set by hand stays; what was accepted is answered once it may start.
            await client.update_lane("main", None)
            await run_where(client, waiting.accepted.run.run_id, SUCCEEDED)
            assert replies(await suite.events("kept"))[1:] == ["later"]
            flow = await flow_where(client, long, suspended=1, running=2)
            assert [node.attempt for node in flow.nodes] == [1, 1, 1]
            await client.cancel_flow(long)
            await flow_where(client, long, cancelled=3)
        suite.stop()
    finally:
        suite.abandon()
