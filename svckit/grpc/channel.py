"""Channels: options, retries, keepalive and the client interceptors, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc import aio
from opentelemetry import trace

from svckit.conventions import TRACER
from svckit.grpc import client, methods
from svckit.grpc.following import FollowingChannel

KEEPALIVE_MS = 30_000
"""How often an idle client asks whether the server lives; servers allow twice as often."""

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted neighbour is found again in a second, not after the default two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # One that comes back at another address, as containers do, likewise: by default a name that
    # was looked up is not looked up again for half a minute.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
]


def make_channel(
    address: str,
    *,
    tracer: trace.Tracer | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    server_name: str = "",
    timeout_of: Callable[[str, Any], float | None] = methods.default_timeout,
    interceptors: Sequence[aio.ClientInterceptor] = (),
    own_connection: bool = False,
    begins_traces: bool = True,
) -> aio.Channel:
    """Open a channel to `address` (`host:port` or `unix:path`). Needs a running event loop.

    Several addresses with commas between them are several schedulers, one of which leads: the
    channel calls that one and goes along when the lead changes (`svckit.grpc.following`).

    Unary calls without a timeout get that of their method (`svckit.grpc.methods`), streams none;
    all are cut to what is left of the request being served. Calls that find nobody are repeated a
    few times, as far as the contract allows. `interceptors` run outside ours. `own_connection`
    keeps long streams from filling the connection that other channels share. With `credentials` the
    certificate must be for `server_name`, by default the host of `address`. Without `begins_traces`
    calls that belong to no trace begin none, unless they bring work. Close it when done.
    """
    ours = client.interceptors(tracer or _default_tracer(), timeout_of, begins_traces=begins_traces)
    chain = [*interceptors, *ours]

    def one(address: str, repeats: tuple[str, Any]) -> aio.Channel:
        options = [repeats, *_OPTIONS, ("grpc.use_local_subchannel_pool", int(own_connection))]
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        if credentials is not None:
            return aio.secure_channel(address, credentials, options=options, interceptors=chain)
        return aio.insecure_channel(address, options=options, interceptors=chain)

    addresses = address.split(",")
    if len(addresses) == 1:
        return one(address, ("grpc.service_config", methods.service_config()))
    # Repeated elsewhere, not at the same address, which may be gone for good.
    return FollowingChannel(addresses, lambda each: one(each, ("grpc.enable_retries", 0)))


connect = make_channel
"""The same under the name that callers of the client library know."""


def _default_tracer() -> trace.Tracer:
    return trace.get_tracer(TRACER)
