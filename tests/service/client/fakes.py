"""Services and a `conveyor up` made of them: real processes, scripted behaviour.

As a program: `python fakes.py up DIRECTORY` is the command `conveyor up` with two fake services;
`python fakes.py service NAME ...` is one of them. How a service behaves is read from the file
`NAME.mode` in the directory each time it starts:

* `ok`: becomes healthy, drains well;
* `refuses`: says why it cannot start, exit code 2;
* `crashes`: ends with code 7 before it is healthy;
* `stubborn`: becomes healthy and ignores SIGTERM;
* `mute`: runs and never becomes healthy.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from conveyor_client.supervision.plan import Service


def fake(directory: Path, name: str, address: str, *, stops_last: bool = False) -> Service:
    """Return a service that behaves as its mode file says, `ok` without one."""
    import os

    config = directory / f"{name}.toml"
    config.write_text(f'[services]\nacp = "{address}"\n[log]\nlevel = "warning"\n')
    argv = [
        sys.executable,
        __file__,
        "service",
        "--config",
        str(config),
        "--exit-with-parent",
        str(os.getpid()),
    ]
    return Service(name, argv, address, stops_last=stops_last)


def set_mode(directory: Path, name: str, mode: str) -> None:
    (directory / f"{name}.mode").write_text(mode)


def _service() -> None:
    config = Path(sys.argv[sys.argv.index("--config") + 1])
    name = config.stem
    mode_file = config.with_suffix(".mode")
    mode = mode_file.read_text() if mode_file.exists() else "ok"
    (config.with_suffix(".started")).open("a").write(f"{time.time()}\n")
    if mode == "crashes":
        sys.exit(7)
    if mode == "mute":
        time.sleep(600)

    from svckit import service  # takes longer than all that
    from svckit.errors import StartError

    if mode == "stubborn":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    @asynccontextmanager
    async def build(context: service.Context) -> AsyncIterator[service.App]:
        if mode == "refuses":
            raise StartError("the database is corrupt; restore it from a backup")
        print(f"hello from {name}", file=sys.stderr, flush=True)
        yield service.App(services=[])
        with config.with_suffix(".stopped").open("a") as log:
            log.write(f"{time.time()}\n")

    service.main(name, build, lambda settings: settings.services.acp)


def _up(directory: Path) -> None:
    from conveyor_client.cli import context
    from conveyor_client.cli.suite import run_suite
    from conveyor_client.supervision.addresses import free_addresses

    first, second = free_addresses(2)
    services = [
        fake(directory, "base", first, stops_last=True),
        fake(directory, "worker", second),
    ]
    try:
        context.run(run_suite(services, console="127.0.0.1:1"))
    except Exception as error:
        told = context.explain_failure(error)
        if told is None:
            raise
        print(f"error: {told[0]}", file=sys.stderr)
        sys.exit(told[1])


if __name__ == "__main__":
    verb = sys.argv.pop(1)
    if verb == "service":
        _service()
    else:
        _up(Path(sys.argv[1]))
