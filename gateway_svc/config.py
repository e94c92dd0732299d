"""Reads what the gateway needs from the suite's settings, and refuses what it cannot honour yet."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Container, Mapping

from conveyor.scheduler.v1 import lane_pb2
from gateway_svc.domain.binding import AcpRules
from gateway_svc.domain.commands.queueing import MODES
from gateway_svc.domain.deliveries import AnnounceStyle
from gateway_svc.domain.principals import (
    LONGEST_TOKEN,
    SHORTEST_TOKEN,
    Principal,
    Scope,
    default_customer_of,
)
from gateway_svc.domain.routing import AgentRules, ChannelRules, RouteRule, RoutingRules
from svckit.caps import caps_of
from svckit.errors import StartError
from svckit.secrets import read_secret
from svckit.settings import Settings
from svckit.settings_model import DEFAULT_AGENT

_OVERFLOW_RULES = {
    "reject": lane_pb2.OVERFLOW_RULE_REJECT,
    "drop_oldest": lane_pb2.OVERFLOW_RULE_DROP_OLDEST,
}
_PULL_CHANNELS = frozenset({"web", "http", "grpc"})


def routing_rules(settings: Settings) -> RoutingRules:
    """Return the rules for messages."""
    ids = settings.agents.ids()
    agents: dict[str, AgentRules] = {}
    for agent_id in ids:
        agent = settings.agents.get(agent_id)
        if agent is None:
            continue
        agents[agent_id] = AgentRules(
            queue_mode=MODES[agent.queue_mode],
            caps=caps_of(agent.subagents),
            model=agent.model,
        )
    return RoutingRules(
        agents=agents,
        default_agent=DEFAULT_AGENT if DEFAULT_AGENT in ids else ids[0],
        routes=[
            RouteRule(route.agent, route.channel, route.account, route.peer)
            for route in settings.routes
        ],
        channels={
            name: ChannelRules(
                agent_id=channel.agent,
                queue_mode=MODES[channel.queue_mode] if channel.queue_mode else None,
            )
            for name, channel in settings.channels.items()
        },
        lane_cap=settings.lanes.session.cap,
        debounce_ms=settings.lanes.session.debounce_ms,
        overflow=_OVERFLOW_RULES[settings.lanes.session.overflow],
        acp=AcpRules(
            turn_seconds=settings.acp.turn_seconds,
            handshake_seconds=settings.acp.handshake_seconds,
            approves_all=settings.acp.permission_mode == "approve-all",
        ),
    )


def announce_styles(settings: Settings) -> dict[str, AnnounceStyle]:
    """Return how much of the ends of sub-agents the recipients of each channel are told."""
    return {
        name: AnnounceStyle(channel.announce_style) for name, channel in settings.channels.items()
    }


def archive_after(settings: Settings) -> Callable[[str], int]:
    """Return the microseconds after which ended sub-agents of an agent leave the lists; 0: never.

    An agent that the configuration does not know has the defaults.
    """

    def after(agent_id: str) -> int:
        agent = settings.agents.get(agent_id) or settings.agents.defaults
        return round(agent.subagents.archive_after_minutes * 60_000_000)

    return after


def refuse_unsupported(settings: Settings, served: Container[str] = ()) -> None:
    """Raise `StartError` for settings that promise something this release does not do.

    `served` are the channels that push, and that this gateway was given.

    Ignoring them would be worse than not starting.
    """
    for name, channel in settings.channels.items():
        if channel.kind not in _PULL_CHANNELS and name not in served:
            raise StartError(
                f"channels.{name}.kind: this release has no channel of kind {channel.kind!r} yet"
            )


def token_holders(
    settings: Settings, environ: Mapping[str, str] | None = None
) -> dict[str, Principal]:
    """Return the configured tokens, each with its holder.

    Raises `StartError` for a token that cannot be read, is short enough to guess, or is there
    twice; and when no token protects an address that other machines reach.
    """
    holders: dict[str, Principal] = {}
    for name, token in settings.gateway.tokens.items():
        key = f"gateway.tokens.{name}"
        secret = read_secret(
            f"{key}.token", env=token.token_env, file=token.token_file, environ=environ
        )
        # What no header can hold nobody could ever show.
        sendable = secret.isascii() and secret.isprintable() and " " not in secret
        if not SHORTEST_TOKEN <= len(secret) <= LONGEST_TOKEN or not sendable:
            raise StartError(
                f"{key}: the token must have {SHORTEST_TOKEN} to {LONGEST_TOKEN} letters, digits "
                "and signs of ASCII and no spaces; `openssl rand -hex 32` makes one"
            )
        if secret in holders:
            raise StartError(f"{key}: the token of {holders[secret].name} is the same")
        scope = max(Scope[each.upper()] for each in token.scopes)
        customer = token.customer_key
        if not customer and scope < Scope.ADMIN:
            customer = default_customer_of(name)
        limit = token.requests_per_minute
        holders[secret] = Principal(
            name=name,
            scope=scope,
            customer_key=customer,
            requests_per_minute=(settings.gateway.requests_per_minute if limit is None else limit),
        )
    if not holders and (found := reachable_from_outside(settings)):
        key, address = found
        raise StartError(
            f"gateway.{key}: {address} can be reached from other machines, and no token is "
            "configured; add [gateway.tokens.<name>], or "
            + (
                "publish the ports on 127.0.0.1"
                if key == "published"
                else "listen on 127.0.0.1 (in a container: say in gateway.published "
                "that its ports are published there)"
            )
        )
    return holders


def reachable_from_outside(settings: Settings) -> tuple[str, str] | None:
    """Return a key of `[gateway]` and the address in it that other machines reach, if any.

    Ports of a container are reached where they are published: it has to listen on all of its own
    addresses for that.
    """
    gateway = settings.gateway
    if gateway.published:
        here = is_loopback(f"{gateway.published}:0")
        return None if here else ("published", gateway.published)
    for key, address in (("http", gateway.http), ("grpc", gateway.grpc)):
        if not is_loopback(address):
            return key, address
    return None


def is_loopback(address: str) -> bool:
    """True when only this machine reaches an address to listen on, `host:port` or `unix:path`."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
