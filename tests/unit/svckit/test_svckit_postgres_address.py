"""Addresses of databases: what they may say, where the password comes from, and that it stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from svckit.errors import StartError
from svckit.postgres import PostgresAddress, masked
from svckit.settings import ConfigError, load


def test_all_parts_of_an_address() -> None:
    found = PostgresAddress.parse("postgresql://me:a%40b@db.example:6432/conv?sslmode=require")
    assert (found.user, found.host, found.port, found.database) == (
        "me",
        "db.example",
        6432,
        "conv",
    )
    assert (found.password, found.options) == ("a@b", {"sslmode": "require"})
    assert found.where == "db.example:6432/conv"
    socket = PostgresAddress.parse("postgresql://me@/conv?host=/run/postgresql")
    assert (socket.host, socket.port) == ("/run/postgresql", 5432)
    assert PostgresAddress.parse("postgresql://me@[::1]/conv").where == "[::1]:5432/conv"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://h/", "must name a database"),
        ("postgresql://me@h", "must name a database"),
        ("postgresql://h/db", "must name a user"),
        ("postgresql://me@h:port/db", "is no address"),
        ("postgresql://me@a,b/db", "must name one host"),
        ("postgresql://me@h/db?sslmod=require", "unknown option sslmod"),
        ("postgresql://me@h/db?sslmode=on", "sslmode must be one of disable"),
    ],
)
def test_a_wrong_address_names_key_and_problem_and_nothing_else(url: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"CONVEYOR_STORE__URL": url.replace("me@", "me:hush@")})
    [line] = caught.value.problems
    assert problem in line
    assert line.startswith("store")
    assert "hush" not in line


def test_the_password_comes_from_where_clients_of_postgresql_look(tmp_path: Path) -> None:
    file = tmp_path / "pass"
    file.write_text(
        "# for everybody\n"
        "elsewhere:*:*:*:wrong\n"
        "h:5432:db:me:p\\:q\\\\r\n"
        "localhost:*:*:me:by socket\n"
        "*:*:*:me:last\n"
    )
    environ = {"PGPASSFILE": str(file)}

    def secret(url: str, **more: str) -> str | None:
        return PostgresAddress.parse(f"postgresql://{url}").secret(environ | more)

    assert secret("me:own@h/db", PGPASSWORD="other") == "own"
    assert secret("me@h/db", PGPASSWORD="other") == "other"
    assert secret("me@h/db") == "p:q\\r"
    assert secret("me@h:6432/db") == "last"
    assert secret("me@/db?host=/run") == "by socket"
    assert secret("you@h/db") is None

    held = tmp_path / "held"
    held.write_text("by file\n")
    by_file = PostgresAddress.parse("postgresql://me@h/db", password_file=str(held))
    assert by_file.secret(environ | {"PGPASSWORD": "other"}) == "by file"
    held.write_text("changed\n")
    assert by_file.secret() == "changed"
    held.unlink()
    with pytest.raises(StartError, match=r"store\.password_file: .* cannot be read"):
        by_file.secret()
    assert secret("you@h/db", PGPASSFILE=str(tmp_path / "missing")) is None


def test_a_shown_address_hides_its_password() -> None:
    assert masked("postgresql://me:hush@h:1/db?sslmode=require") == (
        "postgresql://me:***@h:1/db?sslmode=require"
    )
    assert masked("postgresql://me@h/db?password=hush") == "postgresql://me@h/db?password=***"
    assert masked("postgresql://me@h/db") == "postgresql://me@h/db"
    assert "hush" not in masked("postgresql://me:hush@[h/db")


def test_an_address_that_is_printed_by_accident_shows_no_password() -> None:
    found = PostgresAddress.parse("postgresql://me:hush@db.example/conv")
    assert "hush" not in f"{found!r} {found}"
