"""Runs the service: `python -m acp_svc --config PATH`."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from acp_svc.app import build
from svckit import service


def main() -> NoReturn:
    """Run until told to stop; see `svckit.service.main` for options and exit codes."""
    service.main(
        "acp",
        build,
        lambda settings: settings.acp.listen or settings.services.acp,
        # Child processes are its trade.
        new_loop=asyncio.new_event_loop,
    )


if __name__ == "__main__":
    main()
