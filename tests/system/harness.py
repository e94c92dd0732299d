"""The whole suite as real processes: `conveyor up` as a child, and ways to look into it.

A process of ours is known by its command line, which names the configuration file: that file lies
in a directory of the test's own, so what is found there is exactly what the test started.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_log_service_pb2 as log_pb
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import flow_service_pb2 as flow_pb
from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient, Patience
from svckit.grpc.channel import make_channel
from svckit.testing import eventually
from tests.system.processes import Forked, can_fork, run_forked

CLASSIC = "Do three things: research a market trend, analyse competitors, draft a summary"
TASKS = ["research a market trend", "analyse competitors", "draft a summary"]
CONVEYOR = Path(sys.executable).with_name("conveyor")
SCRIPTED = Path(__file__).parents[1] / "harnesses" / "scripted.py"
MODULES = {
    "scheduler": "scheduler_svc",
    "agent": "agent_svc",
    "acp": "acp_svc",
    "gateway": "gateway_svc",
}
START_BOUND = 45.0
"""Seconds for a start on a machine that is busy with other things."""
PATIENCE = Patience(first=30.0, later=90.0)
"""Of clients, on such a machine."""
STOP_BOUND = 20.0
"""Twice the seconds that the suite promises for a stop: what kills it after them is itself late on
a busy machine."""

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
RUNNING = run_pb2.RUN_STATE_RUNNING
SUSPENDED = run_pb2.RUN_STATE_SUSPENDED
TERMINAL = frozenset(
    {
        run_pb2.RUN_STATE_SUCCEEDED,
        run_pb2.RUN_STATE_FAILED,
        run_pb2.RUN_STATE_CANCELLED,
        run_pb2.RUN_STATE_EXPIRED,
    }
)


class Suite:
    """A suite in a directory of its own, on ports of its own. Not started when made.

    `toml` is added to the configuration. `store` is the directory of the databases. `real`: every
    process is executed, as people do it; else they are forked where that can be, which is quicker.
    """

    def __init__(
        self,
        directory: Path,
        toml: str = "",
        *,
        store: Path | None = None,
        environ: Mapping[str, str] | None = None,
        real: bool = False,
    ) -> None:
        self.real = real or not can_fork()
        self.directory = directory
        self.environ = dict(environ or {})
        self.config = directory / "conveyor.toml"
        self.store = directory / "data" if store is None else Path(store)
        url = store if isinstance(store, str) else f"sqlite:///{self.store}"
        self.lines: list[str] = []
        """What `conveyor up` printed, both streams."""
        self.metrics: dict[str, str] = {}
        """Where each service answers for its metrics, if the configuration says so."""
        self._process: subprocess.Popen[str] | Forked | None = None
        self._reader: threading.Thread | None = None
        http, self.grpc, self.scheduler, self.agent, self.acp = free_addresses(5)
        self.http = f"http://{http}"
        self.config.write_text(
            f"""\
[store]
url = "{url}"
[gateway]
http = "{http}"
grpc = "{self.grpc}"
[services]
scheduler = "{self.scheduler}"
agent = "{self.agent}"
acp = "{self.acp}"
{toml}
"""
        )

    # Its life

    def launch(self) -> None:
        """Start `conveyor up` without waiting for anything."""
        self.lines = []
        words = [str(CONVEYOR), "--config", str(self.config), "up"]
        env = clean_environment() | self.environ
        if self.real:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=env,
                cwd=self.directory,
            )
        else:
            self._process = Forked(words, env=env, cwd=self.directory)
        self._reader = threading.Thread(target=self._read, name="output of the suite", daemon=True)
        self._reader.start()

    def start(self) -> None:
        """Start and wait until it says that it is ready."""
        self.launch()
        self.wait_line("ready in ", START_BOUND)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, within: float = 20.0) -> float:
        """Stop it as a terminal would; returns the seconds it took. No process may be left."""
        assert self._process is not None
        began = time.monotonic()
        self._process.send_signal(number)
        try:
            code = self._process.wait(within)
        except subprocess.TimeoutExpired:
            self.abandon()
            raise AssertionError(f"not stopped after {within} s:\n{self.output}") from None
        took = time.monotonic() - began
        self.clean_up()
        assert code == 0, f"exit code {code}:\n{self.output}"
        return took

    def kill_up(self) -> None:
        """Kill `conveyor up` itself, as nothing should be: it cannot stop its children."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(5)

    def exit_code(self, within: float = START_BOUND) -> int:
        """Wait for `conveyor up` to end by itself."""
        assert self._process is not None
        code = self._process.wait(within)
        self.clean_up()
        return code

    def clean_up(self) -> None:
        """End the test of a suite that should have ended: raises when anything is left."""
        left = self.abandon()
        assert not left, f"processes left: {left}\n{self.output}"

    def abandon(self) -> dict[str, int]:
        """End whatever is left, so that one failure does not bring others; returns what was."""
        left = self.pids()
        # First the one that would start the others again.
        for pid in sorted(left.values(), key=lambda pid: pid != left.get("up")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(5)
            assert self._reader is not None
            self._reader.join(5)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None
        return left

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return "\n".join(self.lines)

    def wait_line(self, part: str, timeout: float = START_BOUND, *, after: int = 0) -> str:
        """Wait for a printed line that holds `part`, and return it."""
        end = time.monotonic() + timeout
        while True:
            found = next((line for line in self.lines[after:] if part in line), None)
            if found is not None:
                return found
            assert self._process is not None
            assert self._process.poll() is None, f"it ended:\n{self.output}"
            assert time.monotonic() < end, (
                f"no line with {part!r} after {timeout} s:\n{self.output}"
            )
            time.sleep(0.02)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    # Its processes

    def pids(self) -> dict[str, int]:
        """Return what runs with this configuration: services by name, and `up`."""
        found = {}
        for pid, words in command_lines():
            if str(self.config) not in words:
                continue
            service = next((n for n, module in MODULES.items() if module in words), None)
            found[service or "up"] = pid
        return found

    def kill(self, service: str) -> int:
        """Kill a service with SIGKILL; returns its process id."""
        pid = self.pids()[service]
        os.kill(pid, signal.SIGKILL)
        return pid

    # Ways in

    def client(self) -> ConveyorClient:
        """Return a client. Use it as an async context manager."""
        return ConveyorClient(self.grpc, patience=PATIENCE)

    def cli(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the command line against the suite and check its exit code."""
        done = run_product(
            str(CONVEYOR), "--config", str(self.config), *arguments, real=self.real, COLUMNS="200"
        )
        assert done.returncode == code, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def cli_json(self, *arguments: str) -> Any:
        """Run the command line and return its one document."""
        return json.loads(self.cli(*arguments, "--json").stdout)

    async def events(self, session_key: str) -> list[event_pb2.Event]:
        """Return the log of one session as the scheduler keeps it, checked for gaps."""
        return await log_of(self.scheduler, session_key)


async def log_of(scheduler: str, session_key: str) -> list[event_pb2.Event]:
    """Return the log of one session as the scheduler at an address keeps it, checked for gaps."""
    found: list[event_pb2.Event] = []
    async with make_channel(scheduler) as channel:
        stub: Any = log_grpc.EventLogServiceStub(channel)
        token = ""
        while True:
            page = await stub.ListEvents(
                log_pb.ListEventsRequest(session_key=session_key, page_size=1000, page_token=token)
            )
            found += page.events
            token = page.next_page_token
            if not token:
                break
    assert [event.sequence for event in found] == list(range(1, len(found) + 1))
    ids = [event.event_id for event in found]
    assert len(ids) == len(set(ids))
    return found


@contextmanager
def running(
    directory: Path,
    toml: str = "",
    *,
    store: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Suite]:
    """Run a suite inside the block. Fails when it does not stop, or leaves a process behind.

    `environ` is added to the environment of `conveyor up` and its services.
    """
    suite = Suite(directory, toml, store=store, environ=environ)
    try:
        suite.start()
        yield suite
    except BaseException:
        suite.abandon()
        raise
    suite.stop()


def scripted_harness(directory: Path, *flags: str) -> str:
    """Return the configuration of a coding agent that does what the prompt says.

    It works below `directory`, in `work`, and notes its processes in `pids` there.
    """
    work, home = directory / "work", directory / "home"
    work.mkdir(exist_ok=True)
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-S", str(SCRIPTED), "--pids", str(directory / "pids"), *flags]
    return f"""\
[acp]
workspace_roots = ["{work}"]
[acp.harness.scripted]
command = {json.dumps(command)}
[acp.harness.scripted.env]
HOME = "{home}"
"""


def free_addresses(count: int) -> list[str]:
    """Return loopback addresses on which nothing listens.

    Below the ports that systems give to outgoing connections: a service that is killed must find
    its port free when it comes back.
    """
    found: list[str] = []
    while len(found) < count:
        address = ("127.0.0.1", random.randrange(20_000, 32_000))
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError:
                continue
        text = f"{address[0]}:{address[1]}"
        found += [text] if text not in found else []
    return found


def run_product(*words: str, real: bool = False, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the command line, or a service that is to end by itself."""
    env = clean_environment(**extra)
    if not real and can_fork():
        return run_forked(words, env=env, timeout=120)
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=env)


def clean_environment(**extra: str) -> dict[str, str]:
    """Return our environment without settings of the developer's shell."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONVEYOR_")}
    return kept | extra


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """Yield process ids with their command lines, of what has not ended."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended meanwhile
        if words != [""]:  # a process that ended and was not waited for has none
            yield int(entry.name), words


def wait_gone(pids: Any, timeout: float) -> dict[str, int]:
    """Wait until `pids` returns nothing; returns what is left when the time is over."""
    end = time.monotonic() + timeout
    while left := pids():
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return dict(left)


# What was said and what happened


def text_of(message: content_pb2.Message) -> str:
    """Return the text parts of a message."""
    return "".join(part.text for part in message.parts)


class Chat:
    """A chat from its first message to its end."""

    def __init__(self) -> None:
        self.items: list[gateway_pb.ChatResponse] = []

    @property
    def run_id(self) -> str:
        """The run that answers."""
        return self.items[0].accepted.run.run_id

    @property
    def events(self) -> list[event_pb2.Event]:
        """The numbered events."""
        return [item.event for item in self.items if item.HasField("event")]

    @property
    def ended(self) -> run_pb2.Run:
        """The run at its end."""
        assert self.items[-1].HasField("ended"), "the chat has not ended"
        return self.items[-1].ended

    @property
    def answer(self) -> str:
        """The text of the last reply."""
        return text_of(self.ended.result.reply)


async def chat(client: ConveyorClient, text: str, **options: Any) -> Chat:
    """Send a message and follow it to its end."""
    told = Chat()
    async with aclosing(client.chat(text, **options)) as stream:
        async for item in stream:
            told.items.append(item)
    return told


def payloads(events: Sequence[event_pb2.Event], kind: str) -> list[Any]:
    """Return the payloads of one kind, in order."""
    return [getattr(event, kind) for event in events if event.WhichOneof("payload") == kind]


def replies(events: Sequence[event_pb2.Event], run_id: str = "") -> list[str]:
    """Return the texts of the replies, in order; of one run when it is named."""
    return [
        text_of(event.message_completed.message)
        for event in events
        if event.message_completed.kind == event_pb2.MESSAGE_KIND_REPLY
        and run_id in ("", event.run_id)
    ]


def span(run: run_pb2.Run) -> tuple[float, float]:
    """Return first start and end of a run, in seconds."""
    return seconds(run.timing.start_time), seconds(run.timing.end_time)


def seconds(stamp: Any) -> float:
    """Return a timestamp as seconds."""
    return float(stamp.ToMicroseconds()) / 1e6


async def flow_where(client: ConveyorClient, flow_id: str, **counts: int) -> Any:
    """Wait until a flow has so many runs in each of the named states, for example `running=3`."""

    async def look() -> flow_pb.GetFlowResponse | None:
        flow = await client.flow(flow_id)
        have = [state_name(node.state) for node in flow.nodes]
        assert {name: have.count(name) for name in counts} == counts, have
        return flow

    return await eventually(look, timeout=60)


async def run_where(
    client: ConveyorClient, run_id: str, state: int, *, within: float = 60
) -> run_pb2.Run:
    """Wait until a run has a state."""

    async def look() -> run_pb2.Run:
        run = (await client.run(run_id)).run
        assert run.state == state, state_name(run.state)
        return run

    return await eventually(look, timeout=within)


def state_name(state: run_pb2.RunState.ValueType) -> str:
    """Return `running` for `RUN_STATE_RUNNING`."""
    return run_pb2.RunState.Name(state).removeprefix("RUN_STATE_").lower()


async def nothing_unfinished(client: ConveyorClient) -> None:
    """Wait until no run is left that could disturb another test."""

    async def look() -> bool:
        page = await client.runs(page_size=200)
        return all(run.state in TERMINAL for run in page.runs)

    await eventually(look, timeout=60)


# Server-sent events


@asynccontextmanager
async def sse(lines: AsyncIterator[str]) -> AsyncIterator[AsyncIterator[Mapping[str, str]]]:
    """Read a stream of server-sent events as dictionaries of `event`, `id` and `data`."""

    async def read() -> AsyncIterator[Mapping[str, str]]:
        fields: dict[str, str] = {}
        async for line in lines:
            if not line:
                if fields:
                    yield fields
                fields = {}
            elif match := re.match(r"(event|id|data): ?(.*)", line):
                fields[match[1]] = match[2]

    async with aclosing(read()) as events:  # type: ignore[type-var]
        yield events
