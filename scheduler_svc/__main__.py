"""Starts the scheduler: `python -m scheduler_svc --config conveyor.toml`."""

from __future__ import annotations

from scheduler_svc.app import build
from svckit.service import main as serve


def main() -> None:
    """Entry point."""
    serve("scheduler", build, lambda settings: settings.services.scheduler)


if __name__ == "__main__":
    main()
