"""Processes of the product that do not import it once more.

`python -m tests.system.nursery LINK PADDING` imports what the services and the command line are
made of, once. What is asked for over the socket LINK then runs in a process of its own, forked from
there, with the words, the environment, the directory and the open files that it was given. So what
a kill takes, and what it leaves behind, is as real as ever; only the seconds of imports are not
paid again for each of a hundred processes.

`conveyor up` starts its services the same way: what it would execute is forked for it from a helper
that was forked before it did anything. How it really starts them is tested where `up` is what the
test is about (`Suite(real=True)`).

PADDING is room for the words of what is forked, which the table of processes shows.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from types import FrameType

import conveyor_client.cli

LARGEST_REQUEST = 200_000
SERVICES = ("scheduler_svc", "agent_svc", "acp_svc", "gateway_svc")
USED_LATER = (
    "alembic.autogenerate",
    "alembic.command",
    "alembic.config",
    "anyio._backends._asyncio",
    "apsw",
    "conveyor_client.client",
    "conveyor_client.diagnosis",
    "conveyor_client.supervision.suite",
    "encodings.idna",
    "grpc_health.v1.health_pb2_grpc",
    "grpc_reflection.v1alpha.reflection",
    "pydantic.v1",
    "rich.live",
    "rich.status",
    "rich.tree",
    "scheduler_svc.store.sqlite",
    "sqlalchemy.dialects.sqlite",
    "svckit.telemetry",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.auto",
    *(
        f"conveyor_client.cli.{module.name}"
        for module in pkgutil.iter_modules(conveyor_client.cli.__path__)
    ),
)
"""What a process would import when it needs it. Without them each does so for itself."""
OUR_PATH = os.environ.get("PYTHONPATH", "").split(":")


@dataclass(frozen=True)
class Job:
    """What a forked process is to be."""

    words: Sequence[str]
    environ: Mapping[str, str]
    directory: str
    session: bool = False
    """True for one that leads a session of its own."""


@dataclass
class Nursery:
    """Forks what is asked for, and tells of each its id and, at its end, its exit code."""

    link: socket.socket
    _told: dict[int, int] = field(default_factory=dict)
    """Where to tell the end of a process: a file by process id."""

    def serve(self) -> Job | None:
        """Work until nobody can ask any more: None. In a forked process: what it is to be."""
        # Of the terminal's Ctrl-C whoever asks takes care.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, _noticed)
        ended, wake = os.pipe()
        os.set_blocking(ended, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([self.link.fileno(), ended], [], [])
            if ended in ready:
                os.read(ended, 4096)
                self._tell_ends()
            if self.link.fileno() not in ready:
                continue
            text, files, _, _ = socket.recv_fds(self.link, LARGEST_REQUEST, 4)
            if not text:
                return None
            *streams, told = files
            pid = os.fork()
            if pid:
                self._told[pid] = told
                with contextlib.suppress(BrokenPipeError):
                    os.write(told, f"{pid}\n".encode())
                for file in streams:
                    os.close(file)
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number, file in enumerate(streams):
                os.dup2(file, number)
            for file in (*streams, told, ended, wake, *self._told.values()):
                os.close(file)
            self.link.close()
            return Job(**json.loads(text))

    def _tell_ends(self) -> None:
        while self._told:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            told = self._told.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(told)


def _noticed(number: int, frame: FrameType | None) -> None:
    """A handler there must be, or nothing wakes up."""


def main() -> int:
    """Be the nursery, and then, in each forked process, what was asked for."""
    for service in SERVICES:
        importlib.import_module(f"{service}.__main__")
    for name in USED_LATER:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    # A service collects garbage when it has started: not that of its forebears each time.
    gc.collect()
    gc.freeze()
    job = Nursery(socket.socket(fileno=int(sys.argv[1]))).serve()
    if job is None:
        return 0
    become(job)
    helper = 0
    if job.words[-1] == "up":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        helper = os.fork()
        if helper:
            theirs.close()
            start_services_over(ours, helper)
        else:
            ours.close()
            show_words(["nursery of the services of", str(os.getppid())])
            job = Nursery(theirs).serve()
            if job is None:
                os._exit(0)
            become(job)
    code = 0
    try:
        run(job)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        code = ended.code or 0
    finally:
        if helper:
            ours.close()
            os.waitpid(helper, 0)
    # All that an end does, but for taking apart what every other process has as well.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def become(job: Job) -> None:
    """Have the surroundings of a process that was just started."""
    from svckit import programs

    if job.session:
        os.setsid()
    os.chdir(job.directory)
    os.environ.clear()
    os.environ.update(job.environ)
    programs._LIFE = token_hex(8)  # every process has another
    show_words(job.words)


def run(job: Job) -> None:
    """Do what the program of a job does. Mostly raises `SystemExit`."""
    customise(job)
    program, *words = job.words
    if "-m" in words[:2]:
        module, *words = words[words.index("-m") + 1 :]
        sys.argv = [module, *words]
        name = module if "." in module else f"{module}.__main__"
        importlib.import_module(name).main()
    else:
        sys.argv = [program, *words]
        importlib.import_module("conveyor_client.cli").main()


def customise(job: Job) -> None:
    """Do what an interpreter does first when a test puts a `sitecustomize` into its path."""
    sys.orig_argv[:] = job.words
    for place in job.environ.get("PYTHONPATH", "").split(":"):
        custom = Path(place, "sitecustomize.py")
        if place not in OUR_PATH and custom.is_file():
            runpy.run_path(str(custom))


def show_words(words: Sequence[str]) -> None:
    """Be listed with these words in the table of processes."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    text = b"".join(word.encode() + b"\0" for word in words)
    assert len(text) < end - begin, "too many words"
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


# In `conveyor up`


class Forked:
    """A service, as `conveyor up` handles a process that it executed."""

    def __init__(self, pid: int, stdout: asyncio.StreamReader, told: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stdout = stdout
        self._end = asyncio.create_task(told.readline())

    async def wait(self) -> int:
        """Return the exit code."""
        return int(await asyncio.shield(self._end) or -signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def start_services_over(link: socket.socket, helper: int) -> None:
    """Have `conveyor up` start its services with a request over `link`."""
    from conveyor_client.supervision import child

    async def execute(*words: str, env: Mapping[str, str], **_: object) -> Forked:
        # Their parent is the helper, which ends with us.
        said = [str(helper) if word == str(os.getpid()) else word for word in words]
        stdout, written = os.pipe()
        told, end = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        job = Job(said, dict(env), os.getcwd(), session=True)
        socket.send_fds(link, [json.dumps(vars(job)).encode()], [null, written, written, end])
        for file in (null, written, end):
            os.close(file)
        news = await _reader(told)
        return Forked(int(await news.readline()), await _reader(stdout), news)

    vars(child)["asyncio"] = _Instead(execute)


class _Instead:
    """The module `asyncio`, but for how a process is executed."""

    def __init__(self, execute: object) -> None:
        self.create_subprocess_exec = execute

    def __getattr__(self, name: str) -> object:
        return getattr(asyncio, name)


async def _reader(file: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(file, "rb", buffering=0)
    )
    return reader


if __name__ == "__main__":
    sys.exit(main())
