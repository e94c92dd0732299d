"""Runs the agent service: `python -m agent_svc --config PATH`."""

from __future__ import annotations

from typing import NoReturn

from svckit import service


def main() -> NoReturn:
    """Entry point of `agent-svc`."""
    from agent_svc.app import address_of, build

    service.main("agent", build, address_of)


if __name__ == "__main__":
    main()
