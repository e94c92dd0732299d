"""Shows the traces of this machine's suite in a tracing UI: `make trace-ui`.

Installs Arize Phoenix in `.trace-ui/`, an environment of its own (once; 900 MB), starts it and the
suite that exports to it, plays the demo request and prints where its trace is. Ctrl-C stops all.
The traces are kept in `.trace-ui/traces` and are there again the next time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("TRACE_UI_DIR") or ROOT / ".trace-ui")
PINS = ROOT / "scripts/tracing/requirements.txt"
CONVEYOR = Path(sys.executable).with_name("conveyor")
START_SECONDS = 180.0
STOP_SECONDS = 15.0


class CannotShow(Exception):
    """There will be no tracing UI; the text says why."""


def install(home: Path) -> None:
    """Install Phoenix below `home`, unless these very versions are there. Raises `CannotShow`."""
    environment, record = home / "env", home / "installed.txt"
    wanted = PINS.read_text()
    if record.exists() and record.read_text() == wanted:
        return
    print("installing Phoenix, about 900 MB, once", flush=True)
    record.unlink(missing_ok=True)
    shutil.rmtree(environment, ignore_errors=True)
    options = ["--disable-pip-version-check", "--no-input", "-qq", "--only-binary=:all:"]
    pip = [str(environment / "bin/python"), "-m", "pip", "install", *options]
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        # The pins name every package: nothing is left to resolve.
        [*pip, "--no-deps", "--no-compile", "--requirement", str(PINS)],
    ):
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
            raise CannotShow("Phoenix cannot be installed, see above")
    record.write_text(wanted)


@contextlib.contextmanager
def phoenix(home: Path, traces: Path, *, port: int, otlp_port: int) -> Iterator[str]:
    """Run the Phoenix of `home` on the directory `traces`, and yield its address.

    Spans go to `otlp_port`; all it listens on is on loopback. Raises `CannotShow`.
    """
    traces.mkdir(parents=True, exist_ok=True)
    own = {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(otlp_port),
        "PHOENIX_WORKING_DIR": str(traces),
        # It shows traces, and neither tells its makers about it nor asks the network for anything.
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
        "PHOENIX_ENABLE_MCP_SERVER": "false",
    }
    command = [
        str(home / "env/bin/python"),
        str(ROOT / "scripts/tracing/serve_phoenix.py"),
        "serve",
    ]
    address = f"http://127.0.0.1:{port}"
    with (traces / "phoenix.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with _stopped_at_the_end(process, signal.SIGTERM):
            _wait(process, f"{address}/healthz", f"Phoenix, see {traces / 'phoenix.log'}")
            yield address


def exporting(ui: str, otlp_port: int) -> dict[str, str]:
    """What makes a suite export to Phoenix and link there, as variables of its environment."""
    return {
        "CONVEYOR_TELEMETRY__OTLP_ENDPOINT": f"http://127.0.0.1:{otlp_port}",
        "CONVEYOR_TELEMETRY__UI_URL": f"{ui}/redirects/traces/{{trace_id}}",
        # Its projects are told by an attribute of whoever sends.
        "OTEL_RESOURCE_ATTRIBUTES": "openinference.project.name=conveyor",
    }


@contextlib.contextmanager
def suite(env: Mapping[str, str], ready: str, options: Sequence[str] = ()) -> Iterator[None]:
    """Run `conveyor up`; `ready` is an address that answers once the suite does."""
    process = subprocess.Popen(
        [str(CONVEYOR), *options, "up"],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    with _stopped_at_the_end(process, signal.SIGINT):
        _wait(process, ready, "the suite, see above")
        yield


@contextlib.contextmanager
def _stopped_at_the_end(process: subprocess.Popen[bytes], how: signal.Signals) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, what: str) -> None:
    """Wait until `address` answers 200. Raises `CannotShow` when the process ends before."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise CannotShow(f"cannot start {what}")
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2.0):
            return  # anything but an answer of success raises
        time.sleep(0.2)
    raise CannotShow(f"no answer after {START_SECONDS:g} s from {what}")


def show(port: int, otlp_port: int, until: Callable[[], None]) -> None:
    """Start everything, play the demo request, and stop it when `until` returns."""
    install(HOME)
    with (
        phoenix(HOME, HOME / "traces", port=port, otlp_port=otlp_port) as ui,
        suite(exporting(ui, otlp_port), f"{_gateway()}/readyz"),
    ):
        subprocess.run([str(CONVEYOR), "demo"], stdin=subprocess.DEVNULL, check=False)
        print(f"\nall traces: {ui}   Ctrl-C stops everything", flush=True)
        until()


def _gateway() -> str:
    from svckit.settings import load

    gateway = load(None).gateway
    return f"{'https' if gateway.tls.cert_file else 'http'}://{gateway.http}"


def _interrupted() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=6006, help="of the UI (default: 6006)")
    parser.add_argument("--otlp-port", type=int, default=4317, help="for spans (default: 4317)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        show(given.port, given.otlp_port, _interrupted)
    except CannotShow as err:
        sys.exit(f"error: {err}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
