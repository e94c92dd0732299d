"""Which processes make up the suite, and whether their addresses are free."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from conveyor_client.supervision.addresses import cannot_listen

if TYPE_CHECKING:
    from svckit.settings import Settings


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the suite."""

    name: str
    """For people, for example `scheduler`."""
    argv: Sequence[str]
    grpc_address: str
    """Where it answers health checks, `host:port`."""
    other_addresses: Sequence[str] = ()
    """What else it listens on, `host:port`."""
    encrypted: bool = False
    """True when it speaks TLS there, perhaps only with clients that have a certificate."""
    stops_last: bool = False
    """True for what the others still need while they hand back their work."""
    env: Mapping[str, str | None] = field(default_factory=dict)
    """Changes to our own environment; None removes a variable."""


def suite(settings: Settings, config: Path | None) -> list[Service]:
    """Return the four services as `settings`, read from `config`, describe them."""
    # With our own id, so that a child whose parent ended before it looked knows it too.
    options = ["--exit-with-parent", str(os.getpid())]
    if config is not None:
        options = ["--config", str(config), *options]

    def argv(module: str) -> list[str]:
        # -P: a file of the user's that lies here and is named like a module is none of ours.
        return [sys.executable, "-P", "-m", module, *options]

    services, gateway, metrics = settings.services, settings.gateway, settings.metrics
    return [
        *_schedulers(settings, argv("scheduler_svc")),
        Service(
            "agent",
            argv("agent_svc"),
            settings.agent.listen or services.agent,
            other_addresses=_named(metrics.agent),
        ),
        Service(
            "acp",
            argv("acp_svc"),
            settings.acp.listen or services.acp,
            other_addresses=_named(metrics.acp),
        ),
        Service(
            "gateway",
            argv("gateway_svc"),
            gateway.grpc,
            other_addresses=(gateway.http, *_named(metrics.gateway)),
            encrypted=bool(gateway.tls.cert_file),
        ),
    ]


def _schedulers(settings: Settings, argv: Sequence[str]) -> list[Service]:
    """Return one scheduler, or all of several: one leads, the others stand by."""
    addresses = settings.services.schedulers
    if settings.scheduler.listen:
        addresses = (settings.scheduler.listen,)  # the others run elsewhere
    found = []
    for number, address in enumerate(addresses, 1):
        metrics = _nth(settings.metrics.scheduler, number)
        env = {"CONVEYOR_SCHEDULER__LISTEN": address} if len(addresses) > 1 else {}
        if metrics and number > 1:
            env["CONVEYOR_METRICS__SCHEDULER"] = metrics
        found.append(
            Service(
                f"scheduler-{number}" if number > 1 else "scheduler",
                argv,
                address,
                other_addresses=_named(metrics),
                stops_last=True,
                env=env,
            )
        )
    return found


def _named(address: str) -> tuple[str, ...]:
    return (address,) if address else ()


def _nth(address: str, number: int) -> str:
    """Where the process of this number, counted from 1, answers: each on the port after the one
    before, since one address is configured for all of them."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + number - 1}" if address else ""


class AddressUnusable(Exception):
    """A service of the suite could not listen where it should. The text says which, where, why."""


def check_addresses_free(services: Sequence[Service]) -> None:
    """Raise `AddressUnusable` when a service could not listen.

    Asked before anything starts: a stranger on a port might answer our health checks, and four
    processes would start only to be stopped again.
    """
    seen: dict[str, str] = {}
    for service in services:
        for address in (service.grpc_address, *service.other_addresses):
            if address.endswith(":0"):
                raise AddressUnusable(
                    f"{service.name} is to listen on {address}; give it a fixed port, so that the "
                    "others find it"
                )
            if address in seen:
                raise AddressUnusable(
                    f"{service.name} and {seen[address]} are both configured to listen on {address}"
                )
            seen[address] = service.name
            problem = cannot_listen(address)
            if problem is not None:
                raise AddressUnusable(f"{service.name} cannot listen on {address}: {problem}")
