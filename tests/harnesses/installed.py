"""What `scripts/install_agents.py` installed, for the tests that need it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

AGENTS = Path(os.environ.get("AGENTS_DIR") or Path(__file__).resolve().parents[2] / ".agents")


def installed(name: str) -> Mapping[str, str]:
    """What the installer wrote about an agent. Skips the test when it is not installed."""
    try:
        found: Mapping[str, str] = json.loads((AGENTS / name / "installed.json").read_text())
    except (OSError, ValueError):
        pytest.skip(f"{name} is not installed: make agents ARGS={name}")
    return found
