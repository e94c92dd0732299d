"""The PostgreSQL server of tests does what tests of faults need."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from svckit.testing.postgres import PostgresMissing, PostgresServer, binaries, postgres_server


def test_every_database_is_empty_and_has_an_address(
    postgres: PostgresServer, postgres_url: str
) -> None:
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert postgres.execute(tables, postgres_url) == [[0]]
    postgres.execute("CREATE TABLE t (a int)", postgres_url)
    with postgres.database() as first:
        postgres.execute("CREATE SCHEMA s; CREATE TABLE public.t (a int)", first)
    with postgres.database() as second:
        assert second == first
        assert postgres.execute(tables, second) == [[0]]
        assert postgres.execute("SELECT to_regnamespace('s')", second) == [[None]]


def test_what_was_committed_survives_every_kind_of_end() -> None:
    with postgres_server() as server:
        port, directory = server.port, server.directory
        server.execute("CREATE TABLE t (a int)")
        ends = [server.stop, partial(server.stop, "immediate"), server.kill]
        for number, end in enumerate(ends):
            server.execute("INSERT INTO t VALUES (:n)", n=number)
            end()
            assert not server.running
            server.start()
            assert server.port == port
        assert server.execute("SELECT a FROM t ORDER BY a") == [[0], [1], [2]]
    assert not directory.exists()


def test_a_machine_without_the_server_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    with pytest.raises(PostgresMissing, match="install the package postgresql"):
        binaries()
