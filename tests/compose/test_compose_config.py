"""All Compose files together, as Compose itself understands them. Starts nothing."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.compose.stack import Stack

OVERLAYS = ("compose.postgres.yaml", "compose.observability.yaml")
SETS = [["compose.yaml", *more] for n in range(3) for more in itertools.permutations(OVERLAYS, n)]


@pytest.mark.parametrize("files", SETS, ids=lambda files: "+".join(files[1:]) or "alone")
def test_every_combination_is_valid_and_publishes_on_loopback_only(
    engine: None, files: list[str]
) -> None:
    stack = Stack("conveyor-test-config", files, POSTGRES_PASSWORD_FILE="deploy/nothing")
    services: dict[str, Any] = json.loads(stack.compose("config", "--format", "json"))["services"]
    ports = {
        (name, port["target"], port["host_ip"])
        for name, service in services.items()
        for port in service.get("ports", [])
    }
    views = {("jaeger", 16686), ("prometheus", 9090), ("grafana", 3000)}
    expected = {("gateway", 8080), ("gateway", 50050)}
    expected |= views if "compose.observability.yaml" in files else set()
    assert ports == {(*each, "127.0.0.1") for each in expected}
    ours = [each for each in services.values() if each["image"] == "conveyor:test"]
    assert len(ours) == (5 if "compose.postgres.yaml" in files else 4)
    for service in ours:
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["init"]
    for service in services.values():
        assert service["restart"] == "unless-stopped"
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert service["logging"]["options"]["max-size"]
