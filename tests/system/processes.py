"""Starts processes of the product for a test: forked from a nursery where that can be."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from svckit import failpoints
from tests.system.nursery import Job

ROOT = Path(__file__).parents[2]
PADDING = 4096
START_SECONDS = 120.0
_nurseries: dict[str, socket.socket] = {}
_lock = threading.Lock()


class Forked:
    """A process of the product. Looks like a `subprocess.Popen` to whoever starts and ends it.

    `output`: the file that it writes to; None stands for a pipe, which is then `stdout`.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        output: IO[bytes] | None = None,
        errors: IO[bytes] | None = None,
        session: bool = False,
    ) -> None:
        self.stdout: IO[str] | None = None
        self._code: int | None = None
        told, end = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        close = [null, end]
        if output is None:
            ours, theirs = os.pipe()
            self.stdout = os.fdopen(ours, encoding="utf-8", errors="replace")
            close.append(theirs)
        else:
            theirs = output.fileno()
        files = [null, theirs, errors.fileno() if errors is not None else theirs, end]
        job = Job(list(words), dict(env), str(cwd), session)
        socket.send_fds(nursery(env), [json.dumps(vars(job)).encode()], files)
        for file in close:
            os.close(file)
        self._told = os.fdopen(told, "rb", buffering=0)
        ready, _, _ = select.select([self._told], [], [], START_SECONDS)
        line = self._told.readline() if ready else b""
        if not line:
            self._told.close()
            raise AssertionError("the nursery of processes is gone")
        self.pid = int(line)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; returns the exit code. Raises `subprocess.TimeoutExpired`."""
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float | None) -> int | None:
        if self._code is None:
            ready, _, _ = select.select([self._told], [], [], timeout)
            if ready:
                self._code = int(self._told.readline() or -signal.SIGKILL)
                self._told.close()
        return self._code


def can_fork() -> bool:
    """Whether this is a system that shows processes as the nursery needs it."""
    return sys.platform == "linux"


def start_service(
    words: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: IO[bytes]
) -> Forked | subprocess.Popen[bytes]:
    """Start a service in a session of its own. It writes to `log`."""
    if can_fork():
        return Forked(words, env=env, cwd=cwd, output=log, session=True)
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )


def run_forked(
    words: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a process of the product to its end, as `subprocess.run` does."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = Forked(words, env=env, cwd=cwd or Path.cwd(), output=output, errors=errors)
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            raise
        said = []
        for file in (output, errors):
            file.seek(0)
            said.append(file.read().decode("utf-8", "replace"))
    return subprocess.CompletedProcess(list(words), code, *said)


def nursery(env: Mapping[str, str]) -> socket.socket:
    """The way to a nursery. What is looked at when the product is imported needs one of its own."""
    points = env.get(failpoints.VARIABLE, "")
    with _lock:
        if points not in _nurseries:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            kept = {k: v for k, v in os.environ.items() if not k.startswith("CONVEYOR_")}
            armed = {failpoints.VARIABLE: points} if points else {}
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.nursery", str(theirs.fileno()), "-" * PADDING],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=kept | {"GRPC_VERBOSITY": "NONE"} | armed,
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
            )
            theirs.close()
            _nurseries[points] = ours
            atexit.register(_end, ours, process)
        return _nurseries[points]


def _end(link: socket.socket, process: subprocess.Popen[bytes]) -> None:
    link.close()
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 10:
        time.sleep(0.01)
    process.kill()
