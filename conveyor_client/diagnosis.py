"""What `conveyor doctor` looks at, and in which words it reports."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from conveyor.acp.v1 import doctor_pb2 as doctor_pb
from conveyor.agent.v1 import agent_service_pb2 as agent_pb
from conveyor.agent.v1 import probe_pb2 as probe_pb
from conveyor_client.supervision.addresses import (
    accepts_connections,
    cannot_listen,
    dial_address,
)
from conveyor_client.supervision.plan import Service, suite

if TYPE_CHECKING:
    from conveyor_client.cli.context import Options
    from svckit.settings import Settings

Status = Literal["ok", "warning", "failed", "skipped"]

HEALTH_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Result:
    """One check. `hint` says what to do about it and is empty when there is nothing to do."""

    name: str
    status: Status
    message: str
    hint: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return it for JSON."""
        return asdict(self)


async def examine(options: Options) -> list[Result]:
    """Check configuration, store, ports, health, models and harnesses, in this order."""
    from svckit.settings import ConfigError

    try:
        settings = options.settings()
    except ConfigError as error:
        return [
            Result("configuration", "failed", problem, "correct this key")
            for problem in error.problems
        ]
    results = [Result("configuration", "ok", _read_from(options.config))]
    results.append(await asyncio.to_thread(_store, settings))
    services = suite(settings, options.config)
    running = await asyncio.gather(*(_healthy(service) for service in services))
    for service, healthy in zip(services, running, strict=True):
        results.extend(_service(service, healthy))
    gateway_runs = running[[service.name for service in services].index("gateway")]
    results.extend(await _models(options, gateway_runs))
    results.extend(await _harnesses(options, gateway_runs))
    return results


def _read_from(chosen: Path | None) -> str:
    from svckit.settings import DEFAULT_FILE

    if chosen or DEFAULT_FILE.is_file():
        return f"read from {chosen or DEFAULT_FILE}"
    return f"no {DEFAULT_FILE} here, so the defaults hold"


def _store(settings: Settings) -> Result:
    url = settings.store.url
    if url.startswith("postgresql:"):
        return _postgres(settings)
    if not url.startswith("sqlite:///"):
        return Result("store", "ok", "in memory: everything is gone after a stop")
    directory = settings.store.directory.absolute()
    nearest = directory
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        return Result(
            "store", "failed", f"{nearest} is not a directory", "set store.url to a directory"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Result(
            "store",
            "failed",
            f"{nearest} cannot be written",
            f"make it writable (chmod u+rwx {nearest}) or set store.url to another directory",
        )
    for file in sorted(directory.glob("*.db")) if directory.exists() else ():
        problem = _database_problem(file)
        if problem:
            return Result(
                "store",
                "failed",
                f"{file} {problem}",
                "restore it from a backup, or move it away to begin afresh",
            )
    free = _free_bytes(nearest)
    if free < 100 * 2**20:
        return Result(
            "store",
            "warning",
            f"only {free // 2**20} MiB are free at {directory}",
            "free some space: writes are refused when the disk is full",
        )
    words = "is ready" if directory.exists() else "will be created"
    return Result("store", "ok", f"{directory} {words}, {free // 2**20} MiB free")


def _postgres(settings: Settings) -> Result:
    from svckit.database_postgres import probe
    from svckit.errors import StartError

    address = settings.store.postgres
    try:
        version, safe = probe(address)
    except StartError as err:
        return Result("store", "failed", str(err), "correct store.url, or start the server")
    if not safe:
        return Result(
            "store",
            "warning",
            f"PostgreSQL {version} at {address.where} runs with fsync=off",
            "turn fsync on: a crash of its machine loses accepted work",
        )
    return Result("store", "ok", f"PostgreSQL {version} at {address.where}")


def _database_problem(file: Path) -> str:
    if not os.access(file, os.R_OK | os.W_OK):
        return "cannot be read and written"
    with file.open("rb") as opened:
        head = opened.read(16)
    # A file that was only just created is empty.
    return "" if head in (b"", b"SQLite format 3\x00") else "is not a database"


def _free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


async def _healthy(service: Service) -> bool | None:
    """True: healthy; False: something listens and is not; None: nothing listens."""
    from conveyor_client.supervision.child import wait_healthy

    if not await asyncio.to_thread(accepts_connections, service.grpc_address):
        return None
    try:
        await asyncio.wait_for(
            wait_healthy(service.grpc_address, encrypted=service.encrypted), timeout=HEALTH_SECONDS
        )
    except TimeoutError:
        return False
    return True


def _service(service: Service, healthy: bool | None) -> Iterator[Result]:
    where = dial_address(service.grpc_address)
    if healthy:
        yield Result(service.name, "ok", f"healthy at {where}")
        return
    if healthy is False:
        yield Result(
            service.name,
            "failed",
            f"something listens at {where} and is not healthy",
            "look at its log (`conveyor up --verbose`); if it is another program, stop it or "
            "configure another port",
        )
        return
    for address in (service.grpc_address, *service.other_addresses):
        problem = cannot_listen(address)
        if problem:
            yield Result(
                f"{service.name} port",
                "failed",
                f"{address}: {problem}",
                "stop what listens there or configure another address"
                if "in use" in problem
                # In a Compose network the name of a container that does not run is unknown.
                else "correct the address, or start what is to have it",
            )
        else:
            yield Result(f"{service.name} port", "ok", f"{address} is free")
    yield Result(
        service.name, "failed", f"does not run (nothing at {where})", "start it: conveyor up"
    )


async def _models(options: Options, gateway_runs: bool | None) -> list[Result]:
    from svckit.errors import ServiceError

    if not gateway_runs:
        return [Result("models", "skipped", "not checked, because the gateway does not run")]
    try:
        async with options.client() as client:
            found = await client.models(page_size=500)
    except ServiceError as error:
        return [Result("models", "failed", error.message)]
    return [judged(model) for model in found.models if model.agent_ids]


def judged(model: agent_pb.Model) -> Result:
    """Say what the newest probe means for the agents that use a model."""
    name = f"model {model.model}"
    again = f"conveyor model probe {model.model}"
    if not model.HasField("probe"):
        return Result(name, "skipped", "never probed: it may delegate badly", again)
    report = model.probe
    match report.verdict:
        case probe_pb.PROBE_VERDICT_ORCHESTRATOR:
            return Result(name, "ok", "orchestrator: delegates by itself")
        case probe_pb.PROBE_VERDICT_NEEDS_INSISTING:
            return Result(
                name,
                "warning",
                "needs-insisting: delegates when told or forced to",
                "keep the guard on for agents that delegate with it",
            )
        case probe_pb.PROBE_VERDICT_LEAF_ONLY:
            return Result(
                name,
                "warning",
                "leaf-only: does not delegate reliably",
                "use it for sub-agents, and a stronger model for agents that delegate",
            )
        case _:
            return Result(name, "warning", "probed with too few answers to tell", again)


async def _harnesses(options: Options, gateway_runs: bool | None) -> list[Result]:
    from svckit.errors import ServiceError

    if not gateway_runs:
        return [Result("harnesses", "skipped", "not checked, because the gateway does not run")]
    try:
        async with options.client() as client:
            report = await client.doctor()
    except ServiceError as error:
        return [Result("harnesses", "failed", error.message)]
    return list(summarise(report))


def summarise(report: doctor_pb.DoctorReport) -> Iterator[Result]:
    """Yield what the report on harnesses means for the suite, which works without any.

    Harnesses that are not installed become one line, and what was not checked none: the whole
    report is `conveyor acp doctor`.
    """
    missing = [c.harness_id for c in report.checks if c.code == "ACP_BACKEND_MISSING"]
    installed = [
        c.harness_id
        for c in report.checks
        if c.kind == doctor_pb.DOCTOR_CHECK_KIND_COMMAND_FOUND
        and c.status == doctor_pb.DOCTOR_STATUS_OK
    ]
    for check in report.checks:
        if check.code == "ACP_BACKEND_MISSING" or check.status == doctor_pb.DOCTOR_STATUS_SKIPPED:
            continue
        status = check_status(check)
        yield Result(
            f"harness {check.harness_id}: {check_name(check)}"
            if check.harness_id
            else f"harnesses: {check_name(check)}",
            "warning" if status == "failed" else status,
            check.message,
            check.hint,
        )
    if missing:
        yield Result(
            "harnesses: not installed",
            "ok" if installed else "warning",
            ", ".join(missing),
            "" if installed else "conveyor acp doctor says how to install them",
        )


def check_status(check: doctor_pb.DoctorCheck) -> Status:
    """Return the status of an ACP check as a word."""
    match check.status:
        case doctor_pb.DOCTOR_STATUS_OK:
            return "ok"
        case doctor_pb.DOCTOR_STATUS_WARNING:
            return "warning"
        case doctor_pb.DOCTOR_STATUS_FAILED:
            return "failed"
        case _:
            return "skipped"


def check_name(check: doctor_pb.DoctorCheck) -> str:
    """Return the kind of an ACP check in words."""
    if check.kind not in doctor_pb.DoctorCheckKind.values():
        return "unknown check"
    name = doctor_pb.DoctorCheckKind.Name(check.kind)
    return name.removeprefix("DOCTOR_CHECK_KIND_").lower().replace("_", " ")


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def flat_toml(data: Mapping[str, object], path: str = "") -> Iterator[str]:
    """Yield the lines of a TOML document with dotted keys. Unset values are comments."""
    for name, value in data.items():
        key = name if _BARE_KEY.fullmatch(name) else json.dumps(name)
        key = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            if value:
                yield from flat_toml(value, key)
        elif value is None:
            yield f"# {key} is not set"
        else:
            yield f"{key} = {_toml_value(value)}"


def _toml_value(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(entry) for entry in value) + "]"
    if isinstance(value, Mapping):
        entries = (f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(entries) + "}"
    # TOML writes booleans, numbers and basic strings as JSON does.
    return json.dumps(value, ensure_ascii=False)
