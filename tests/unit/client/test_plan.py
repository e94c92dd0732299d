from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from conveyor_client.cli.context import Options
from conveyor_client.cli.suite import services_of as services_of_up
from conveyor_client.supervision.addresses import (
    accepts_connections,
    cannot_listen,
    dial_address,
    free_addresses,
    listens,
)
from conveyor_client.supervision.plan import (
    AddressUnusable,
    Service,
    check_addresses_free,
    suite,
)
from svckit.settings import load


def test_several_schedulers_are_as_many_processes_that_know_which_they_are() -> None:
    both = {
        "CONVEYOR_STORE__URL": "postgresql://me@127.0.0.1:5432/conveyor",
        "CONVEYOR_SERVICES__SCHEDULER": "127.0.0.1:50051, 127.0.0.1:50061",
    }
    services = suite(load(environ=both), None)
    first, second = services[:2]
    assert (first.name, second.name) == ("scheduler", "scheduler-2")
    assert (first.grpc_address, second.grpc_address) == ("127.0.0.1:50051", "127.0.0.1:50061")
    assert second.env == {"CONVEYOR_SCHEDULER__LISTEN": "127.0.0.1:50061"}
    assert [service.name for service in services if service.stops_last] == [
        "scheduler",
        "scheduler-2",
    ]
    one_of_them = suite(
        load(environ=both | {"CONVEYOR_SCHEDULER__LISTEN": "127.0.0.1:50061"}), None
    )
    assert [s.grpc_address for s in one_of_them if s.name.startswith("scheduler")] == [
        "127.0.0.1:50061"
    ]


def test_schedulers_on_one_machine_answer_for_their_metrics_side_by_side() -> None:
    """The second could not start, since the first had the port."""
    both = {
        "CONVEYOR_STORE__URL": "postgresql://me@127.0.0.1:5432/conveyor",
        "CONVEYOR_SERVICES__SCHEDULER": "127.0.0.1:50051, 127.0.0.1:50061",
        "CONVEYOR_METRICS__SCHEDULER": "127.0.0.1:9470",
        "CONVEYOR_METRICS__ACP": "127.0.0.1:9472",
    }
    first, second, agent, acp, gateway = suite(load(environ=both), None)
    assert first.other_addresses == ("127.0.0.1:9470",)
    assert "CONVEYOR_METRICS__SCHEDULER" not in first.env
    assert second.other_addresses == ("127.0.0.1:9471",)
    assert second.env["CONVEYOR_METRICS__SCHEDULER"] == "127.0.0.1:9471"
    assert agent.other_addresses == ()
    assert acp.other_addresses == ("127.0.0.1:9472",)
    assert gateway.other_addresses == ("127.0.0.1:8080",)


def test_what_up_wants_of_all_services_does_not_hide_what_one_has_to_know() -> None:
    """`conveyor up` replaced the environment of each, so no scheduler knew which one it was."""
    both = {
        "CONVEYOR_STORE__URL": "postgresql://me@127.0.0.1:5432/conveyor",
        "CONVEYOR_SERVICES__SCHEDULER": "127.0.0.1:50051, 127.0.0.1:50061",
    }
    services = services_of_up(Options(), load(environ=both), verbose=False)
    assert services[1].env["CONVEYOR_SCHEDULER__LISTEN"] == "127.0.0.1:50061"
    assert services[1].env["CONVEYOR_LOG__LEVEL"] == "warning"


def test_the_suite_is_four_processes_that_know_their_parent() -> None:
    services = suite(load(environ={}), Path("my.toml"))
    assert [service.name for service in services] == ["scheduler", "agent", "acp", "gateway"]
    assert services[0].argv == [
        sys.executable,
        # A queue.py of the user's in this directory must not become ours.
        "-P",
        "-m",
        "scheduler_svc",
        "--config",
        "my.toml",
        "--exit-with-parent",
        str(os.getpid()),
    ]
    assert [service.name for service in services if service.stops_last] == ["scheduler"]
    assert services[3].other_addresses == ("127.0.0.1:8080",)


@pytest.mark.parametrize(
    ("listens", "reached"),
    [
        ("0.0.0.0:5", "127.0.0.1:5"),
        ("[::]:5", "[::1]:5"),
        ("10.1.2.3:5", "10.1.2.3:5"),
        ("unix:/run/x", "unix:/run/x"),
    ],
)
def test_a_wildcard_is_reached_over_loopback(listens: str, reached: str) -> None:
    assert dial_address(listens) == reached


def test_a_taken_port_is_named_with_its_service() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert accepts_connections(address)
        assert listens(os.getpid(), address)
        assert not listens(os.getppid(), address)
        with pytest.raises(AddressUnusable, match=f"agent cannot listen on {address}: the"):
            check_addresses_free([Service("agent", (), address)])
    assert cannot_listen(address) is None
    assert not accepts_connections(address)
    assert not listens(os.getpid(), address)


def test_two_services_on_one_address_are_refused() -> None:
    address, other = free_addresses(2)
    with pytest.raises(AddressUnusable, match="b and a are both configured"):
        check_addresses_free([Service("a", (), address), Service("b", (), other, (address,))])


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(AddressUnusable, match=r"a cannot listen on 192\.0\.2\.1:5005"):
        check_addresses_free([Service("a", (), "192.0.2.1:5005")])


def test_the_suite_needs_fixed_ports() -> None:
    with pytest.raises(AddressUnusable, match="give it a fixed port"):
        check_addresses_free([Service("a", (), "127.0.0.1:0")])


def test_a_descriptor_that_closes_while_it_is_looked_at_is_not_the_end_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A service that just answered was taken for a stranger, and restarted."""
    with socket.socket() as open_one, socket.socket() as closing:
        open_one.bind(("127.0.0.1", 0))
        open_one.listen()
        readlink, gone = os.readlink, f"/proc/{os.getpid()}/fd/{closing.fileno()}"

        def closed_meanwhile(path: str) -> str:
            if path == gone:
                raise FileNotFoundError(path)
            return readlink(path)

        # Looked at first, whatever order the system lists them in.
        numbers = sorted(os.listdir(f"/proc/{os.getpid()}/fd"), key=lambda n: n not in gone)
        monkeypatch.setattr(os, "listdir", lambda path: numbers)
        monkeypatch.setattr(os, "readlink", closed_meanwhile)
        assert listens(os.getpid(), f"127.0.0.1:{open_one.getsockname()[1]}")
