"""`rpcs.md`: all services and RPCs, from the comments in the protos, with what is missing."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.descriptor_pb2 import MethodDescriptorProto

from docgen import NOTE, cell, descriptors, probe

# Port and process of each package; where a service is hosted is no part of the contract.
HOSTS = {
    "conveyor.gateway.v1": ("gateway_svc", 50050),
    "conveyor.scheduler.v1": ("scheduler_svc", 50051),
    "conveyor.events.v1": ("scheduler_svc", 50051),
    "conveyor.agent.v1": ("agent_svc", 50052),
    "conveyor.acp.v1": ("acp_svc", 50053),
}

INTRO = """# RPCs

Generated from the comments in [`protos/`](../../protos/README.md), where the messages are described
field by field. Clients outside talk to `GatewayService` only; the other services are for each other
and for operators. All of them also serve `grpc.health.v1.Health` and server reflection. Errors:
[errors.md](errors.md).

Every RPC of the contract exists. One that is marked *not yet* answers `UNIMPLEMENTED` with the reason
`NOT_IMPLEMENTED`, which names the feature. The marks come from calling the services, not from a list.

"""


def _signature(method: MethodDescriptorProto) -> str:
    def short(name: str) -> str:
        return name.removeprefix(".conveyor.")

    arrow = "→ stream" if method.server_streaming else "→"
    return f"`{short(method.input_type)}` {arrow} `{short(method.output_type)}`"


def render(image: Path) -> str:
    """The document."""
    missing = probe.missing()
    overview, details = [], []
    for file in sorted(
        descriptors.files(image), key=lambda f: list(HOSTS).index(f.package) if f.service else -1
    ):
        for i, comment, methods in descriptors.service_comments(file):
            service = file.service[i]
            full_name = f"{file.package}.{service.name}"
            process, port = HOSTS[file.package]
            overview.append(f"\n**[`{service.name}`](#{service.name.lower()})**: ")
            names = []
            details.append(
                f"\n## {service.name}\n\n`{full_name}`, served by `{process}` on port {port}.\n\n"
                f"{comment}\n"
            )
            for method, text in zip(service.method, methods, strict=True):
                feature = missing.rpcs.get(f"/{full_name}/{method.name}")
                names.append(f"`{method.name}`" + ("*" if feature else ""))
                details.append(f"\n### {method.name}\n\n{_signature(method)}\n\n")
                if feature:
                    details.append(f"**Not yet.** {cell(feature)}\n\n")
                details.append(f"{text}\n")
            overview.append(" ".join(names) + "\n")
    options = "".join(f"- `{method}`: {option}\n" for method, option in missing.options)
    if options:
        options = f"\nThese calls are there, these options of them not yet:\n\n{options}"
    return (
        NOTE
        + INTRO
        + "`*` marks what is not there yet.\n"
        + "".join(overview)
        + options
        + "".join(details)
    )
