"""The stack of the Compose files, started with `docker compose` as its users do."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from svckit.testing import eventually, free_port

ROOT = Path(__file__).parents[2]
IMAGE = "conveyor:test"
LEADS = "conveyor.scheduler.v1.SchedulerService"
COMPOSE_AT_LEAST = (2, 24)
UP_SECONDS = 240
BACK_SECONDS = 90.0
"""A start, a health check and a pause of the engine before it, on a machine that is busy."""
_AS_ROOT = ("--pid=host", "--user=0", "--cap-add=KILL")
_KILL = "import os, sys; os.kill(int(sys.argv[1]), 9)"


class EngineMissing(Exception):
    """There is no engine, or none that fits. The text says why."""


def find_engine() -> None:
    """Raise `EngineMissing` unless an engine answers and has a Compose of today."""
    if shutil.which("docker") is None:
        raise EngineMissing("there is no docker command (scripts/engine.sh up gets all of it)")
    try:
        found = docker("compose", "version", "--short", timeout=30)
        docker("info", "--format", "{{.ServerVersion}}", timeout=30)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as err:
        said = (err.stderr or "no answer").strip().splitlines()[:1]
        raise EngineMissing(f"no engine for containers: {said[0] if said else err}") from None
    version = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if version < COMPOSE_AT_LEAST:
        raise EngineMissing(f"docker compose is {found.strip()}, and 2.24 is needed")


def docker(*arguments: str, timeout: float = 60, env: Mapping[str, str] | None = None) -> str:
    """Run a docker command and return what it prints. Raises `CalledProcessError`."""
    done = subprocess.run(
        ["docker", *arguments],
        cwd=ROOT,
        env=dict(os.environ if env is None else env),
        check=True,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


@dataclass(frozen=True)
class Container:
    """One container as the engine describes it now."""

    about: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.about["Id"])

    @property
    def service(self) -> str:
        return str(self.about["Config"]["Labels"]["com.docker.compose.service"])

    @property
    def host_name(self) -> str:
        return str(self.about["Config"]["Hostname"])

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.about["State"]
        return found

    @property
    def healthy(self) -> bool:
        return bool(self.state["Running"]) and self.state["Health"]["Status"] == "healthy"

    @property
    def host_config(self) -> dict[str, Any]:
        found: dict[str, Any] = self.about["HostConfig"]
        return found

    @property
    def published(self) -> dict[str, tuple[str, str]]:
        """Port of the container to address and port of the machine."""
        ports = self.about["NetworkSettings"]["Ports"]
        return {
            name: (places[0]["HostIp"], places[0]["HostPort"])
            for name, places in ports.items()
            if places
        }

    def address_in(self, network: str) -> str:
        return str(self.about["NetworkSettings"]["Networks"][network]["IPAddress"])


class Stack:
    """A project of its own, on ports of its own. `files`: as given to `-f`."""

    def __init__(self, name: str, files: Sequence[str], **env: str) -> None:
        self.name = name
        self._files = [word for file in files for word in ("-f", file)]
        self.http_port, self.grpc_port = free_port(), free_port()
        # Nothing of the developer's own settings counts, as they pass through the Compose files.
        ours = ("CONVEYOR_", "SUITE_", "COMPOSE_")
        self._env = {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {
            "SUITE_IMAGE": IMAGE,
            "SUITE_HTTP_PORT": str(self.http_port),
            "SUITE_GRPC_PORT": str(self.grpc_port),
            "SUITE_BUILD_CA": os.environ.get("SUITE_BUILD_CA") or _certificates(),
            **env,
        }

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def get(self, path: str) -> httpx.Response:
        """Ask the gateway through its published port, as a browser would."""
        return httpx.get(f"http://localhost:{self.http_port}{path}", timeout=10)

    def compose(self, *arguments: str, timeout: float = 120) -> str:
        try:
            return docker(
                "compose",
                "--project-name",
                self.name,
                # In the place of a file .env that somebody has.
                "--env-file",
                "deploy/nothing",
                *self._files,
                *arguments,
                timeout=timeout,
                env=self._env,
            )
        except subprocess.CalledProcessError as err:
            raise AssertionError(
                f"docker compose {' '.join(arguments)} failed:\n{err.stderr[-3000:]}"
            ) from None

    def build(self, *services: str) -> None:
        self.compose("build", *services, timeout=UP_SECONDS * 3)

    def up(self) -> None:
        """Start, and wait until everything is healthy."""
        try:
            self.compose("up", "--detach", "--wait", "--no-build", timeout=UP_SECONDS)
        except (AssertionError, subprocess.TimeoutExpired):
            print(self.compose("logs", "--tail", "30"))
            raise

    def stop(self) -> float:
        """Stop everything as `docker compose stop` does and return how many seconds it took."""
        started = time.monotonic()
        self.compose("stop")
        return time.monotonic() - started

    def down(self) -> None:
        """Remove everything, volumes included."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")

    def containers(self) -> dict[str, list[Container]]:
        """All containers by service."""
        label = f"label=com.docker.compose.project={self.name}"
        ids = docker("ps", "--all", "--quiet", "--no-trunc", "--filter", label).split()
        found: dict[str, list[Container]] = {}
        for about in json.loads(docker("inspect", *ids)):
            found.setdefault(Container(about).service, []).append(Container(about))
        return found

    def one(self, service: str) -> Container:
        (container,) = self.containers()[service]
        return container

    def run_in(self, container: Container, *command: str) -> tuple[int, str]:
        """Run a command in a container; exit code and output."""
        done = subprocess.run(
            ["docker", "exec", container.id, *command],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    def kill(self, container: Container) -> None:
        """SIGKILL its first process, as the kernel does when memory is short.

        `docker kill` would not do: what a person kills the engine does not start again.
        """
        pid = str(container.state["Pid"])
        docker("run", "--rm", "--network=none", *_AS_ROOT, IMAGE, "python", "-c", _KILL, pid)

    async def back(self, killed: Container) -> Container:
        """Wait until a container that was killed runs again and is healthy."""

        def again() -> Container | None:
            (about,) = json.loads(docker("inspect", killed.id))
            found = Container(about)
            restarted = found.about["RestartCount"] > killed.about["RestartCount"]
            return found if restarted and found.healthy else None

        return await eventually(again, timeout=BACK_SECONDS)

    def leaders(self) -> list[Container]:
        """The schedulers that lead, by their own word."""
        services = self.containers()
        schedulers = [*services["scheduler"], *services.get("scheduler-2", [])]
        asked = ("conveyor-health", "127.0.0.1:50051", LEADS)
        return [each for each in schedulers if self.run_in(each, *asked)[0] == 0]


def _certificates() -> str:
    """The certificates that this machine trusts, for what a build downloads."""
    paths = [ssl.get_default_verify_paths().cafile, "/etc/ssl/certs/ca-certificates.crt"]
    found = next((path for path in paths if path and Path(path).is_file()), None)
    return found or str(ROOT / "deploy" / "nothing")
