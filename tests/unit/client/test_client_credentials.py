"""Where the command line has its token and its TLS from."""

from __future__ import annotations

from pathlib import Path

import pytest

from conveyor_client.cli.context import CannotRun, Options
from conveyor_client.credentials import Tls


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONVEYOR_TOKEN", raising=False)
    monkeypatch.setenv("MINE", "of-a-variable")
    (tmp_path / "file").write_text("of-a-file\n")


def configured(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "conveyor.toml"
    path.write_text(text)
    return path


def test_the_option_then_the_environment_then_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, '[client]\ntoken_file = "file"\n')
    assert Options().token() == "of-a-file", "the configuration here"
    assert Options(config).token() == "of-a-file"
    monkeypatch.setenv("CONVEYOR_TOKEN", "of-the-environment")
    assert Options(config).token() == "of-the-environment"
    assert Options(config, token_env="MINE").token() == "of-a-variable"
    assert Options(config, token_file=tmp_path / "file").token() == "of-a-file"


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert Options().token() is None
    assert Options().security() is None


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        ("", {"token_env": "NOT_SET"}, "the environment variable NOT_SET is not set"),
        ("", {"token_file": Path("nowhere")}, "nowhere cannot be read"),
        ('[client]\ntoken_env = "NOT_SET"\n', {}, "NOT_SET is not set"),
    ],
)
def test_one_that_was_named_must_be_there(
    tmp_path: Path, text: str, options: dict[str, object], problem: str
) -> None:
    config = configured(tmp_path, text)
    with pytest.raises(CannotRun, match=problem) as failed:
        Options(config, **options).token()  # type: ignore[arg-type]
    assert failed.value.exit_code == 2


def test_a_gateway_of_this_configuration_is_called_as_it_is_served(tmp_path: Path) -> None:
    config = configured(
        tmp_path, '[gateway.tls]\ncert_file = "server.pem"\nkey_file = "server.key"\n'
    )
    assert Options(config).security() == Tls(ca_file=Path("server.pem"))
    assert Options(config, address="elsewhere:1").security() is None
    assert Options(config, address="elsewhere:1", tls=True).security() == Tls()
    assert Options(config, tls=False).security() is None
    assert Options(config, ca_file=Path("ca.pem")).security() == Tls(ca_file=Path("ca.pem"))


def test_tls_of_a_gateway_elsewhere(tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        '[client]\nca_file = "ca.pem"\ncert_file = "me.pem"\nkey_file = "me.key"\n'
        'server_name = "conveyor.example.com"\n',
    )
    expected = Tls(Path("ca.pem"), Path("me.pem"), Path("me.key"), "conveyor.example.com")
    assert Options(config, address="elsewhere:1").security() == expected


async def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"ca\.pem: cannot be read") as failed:
        Options(address="elsewhere:1", ca_file=Path("ca.pem")).client()
    assert failed.value.exit_code == 2
