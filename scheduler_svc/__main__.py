"""Starts the scheduler: `python -m scheduler_svc --config conveyor.toml`."""

from __future__ import annotations

from scheduler_svc.app import address_of, build
from svckit.service import main as serve


def main() -> None:
    """Entry point."""
    serve("scheduler", build, address_of)


if __name__ == "__main__":
    main()
