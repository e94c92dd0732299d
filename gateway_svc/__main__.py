"""Runs the gateway as a process: `python -m gateway_svc [--config PATH]`."""

from __future__ import annotations

from typing import NoReturn

from gateway_svc.app import build
from svckit import service


def main() -> NoReturn:
    """Run the gateway."""
    service.main("gateway", build, lambda settings: settings.gateway.grpc)


if __name__ == "__main__":
    main()
