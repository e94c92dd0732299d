"""`conveyor doctor` where names of a network stand for addresses."""

from __future__ import annotations

from conveyor_client.diagnosis import _service
from conveyor_client.supervision.plan import Service


def test_a_name_that_nobody_has_is_no_port_in_use() -> None:
    """In a Compose network without its scheduler it said to stop what listens there."""
    found = list(_service(Service("scheduler", (), "nobody.invalid:50051"), None))
    assert [result.name for result in found] == ["scheduler port", "scheduler"]
    assert "correct the address" in found[0].hint
    assert "stop" not in found[0].hint
