"""TLS at both doors, with certificates made here; and starts that would protect nothing."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from conveyor_client import ConveyorClient, Tls
from conveyor_client.connection import Patience
from gateway_svc.app import GatewayApp, build
from svckit.errors import StartError, Unauthenticated, Unreachable
from svckit.settings import load
from svckit.testing import in_process
from tests.service.gateway.suite import suite

TOKEN = "0123456789abcdef0123456789abcdef"
HURRY = Patience(first=2.0, later=2.0)


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates that it signed for a server and for a client."""
    at = tmp_path_factory.mktemp("papers")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other-ca"):
        openssl(
            *("req", "-x509", *curve, "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", at / f"{name}.key", "-out", at / f"{name}.pem"),
        )
    for name, alternative in (("server", "DNS:conveyor.test"), ("client", "DNS:ann")):
        openssl(
            *("req", *curve, "-subj", f"/CN={name}", "-addext", f"subjectAltName={alternative}"),
            *("-keyout", at / f"{name}.key", "-out", at / f"{name}.csr"),
        )
        openssl(
            *("x509", "-req", "-in", at / f"{name}.csr", "-days", "2", "-copy_extensions", "copy"),
            *("-CA", at / "ca.pem", "-CAkey", at / "ca.key", "-out", at / f"{name}.pem"),
        )
    (at / "token").write_text(TOKEN)
    return at


def served(papers: Path, **more: str | Path) -> dict[str, str]:
    return {
        "CONVEYOR_GATEWAY__TLS__CERT_FILE": str(papers / "server.pem"),
        "CONVEYOR_GATEWAY__TLS__KEY_FILE": str(papers / "server.key"),
        "CONVEYOR_GATEWAY__TOKENS__ANN__TOKEN_FILE": str(papers / "token"),
    } | {name: str(value) for name, value in more.items()}


def context(papers: Path, *, certificate: bool = False) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=papers / "ca.pem")
    if certificate:
        made.load_cert_chain(papers / "client.pem", papers / "client.key")
    return made


async def test_both_doors_speak_tls_only(tmp_path: Path, papers: Path) -> None:
    async with suite(tmp_path, **served(papers)) as around, around.serve():
        app = around.gateway.app
        assert isinstance(app, GatewayApp)
        address = around.gateway.address
        tls = Tls(ca_file=papers / "ca.pem", server_name="conveyor.test")
        async with ConveyorClient(address, token=TOKEN, tls=tls, patience=HURRY) as client:
            assert not (await client.runs()).runs
        async with ConveyorClient(address, tls=tls, patience=HURRY) as client:
            with pytest.raises(Unauthenticated):
                await client.runs()

        # Plain text, another authority, another name: no call comes about.
        wrong = Tls(ca_file=papers / "other-ca.pem", server_name="conveyor.test")
        for other in (None, wrong, Tls(ca_file=papers / "ca.pem")):
            async with ConveyorClient(
                address, token=TOKEN, tls=other, patience=Patience(first=0.4)
            ) as client:
                with pytest.raises(Unreachable):
                    await client.runs()

        held = {"Authorization": f"Bearer {TOKEN}", "Host": "localhost"}
        named = {"sni_hostname": "conveyor.test"}
        async with httpx.AsyncClient(verify=context(papers), trust_env=False) as http:
            url = f"https://{app.http_address}/v1/runs"
            response = await http.get(url, headers=held, extensions=named)
            assert response.status_code == 200
        async with httpx.AsyncClient(verify=context(papers), trust_env=False) as http:
            with pytest.raises(httpx.ConnectError):
                await http.get(url, headers=held)  # another name
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get(url.replace("https", "http"), headers=held)


async def test_clients_that_must_show_a_certificate(tmp_path: Path, papers: Path) -> None:
    env = served(papers, CONVEYOR_GATEWAY__TLS__CLIENT_CA=papers / "ca.pem")
    async with suite(tmp_path, **env) as around, around.serve():
        app = around.gateway.app
        assert isinstance(app, GatewayApp)
        address = around.gateway.address
        bare = Tls(ca_file=papers / "ca.pem", server_name="conveyor.test")
        ours = Tls(papers / "ca.pem", papers / "client.pem", papers / "client.key", "conveyor.test")
        async with ConveyorClient(address, token=TOKEN, tls=ours, patience=HURRY) as client:
            assert not (await client.runs()).runs
        async with ConveyorClient(
            address, token=TOKEN, tls=bare, patience=Patience(first=0.4, later=0.4)
        ) as client:
            with pytest.raises(Unreachable):
                await client.runs()

        held = {"Authorization": f"Bearer {TOKEN}", "Host": "localhost"}
        named = {"sni_hostname": "conveyor.test"}
        url = f"https://{app.http_address}/v1/runs"
        with_one = context(papers, certificate=True)
        async with httpx.AsyncClient(verify=with_one, trust_env=False) as http:
            assert (await http.get(url, headers=held, extensions=named)).status_code == 200
        async with httpx.AsyncClient(verify=context(papers), trust_env=False) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(url, headers=held, extensions=named)


@pytest.mark.parametrize(
    ("key", "file", "problem"),
    [
        ("CERT_FILE", "nothing.pem", r"gateway\.tls\.cert_file: .* cannot be read"),
        ("CERT_FILE", "ca.pem", r"gateway\.tls: cert_file and key_file must be"),
        ("KEY_FILE", "token", r"gateway\.tls: cert_file and key_file must be"),
        ("CLIENT_CA", "token", r"gateway\.tls\.client_ca: must hold certificates"),
    ],
)
async def test_files_that_do_not_fit(
    tmp_path: Path, papers: Path, key: str, file: str, problem: str
) -> None:
    env = served(papers) | {f"CONVEYOR_GATEWAY__TLS__{key}": str(papers / file)}
    await refused(tmp_path, env, problem)


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"CONVEYOR_GATEWAY__HTTP": "0.0.0.0:0"}, r"gateway\.http: 0\.0\.0\.0:0 can be reached"),
        ({"CONVEYOR_GATEWAY__GRPC": "[::]:0"}, r"gateway\.grpc: \[::\]:0 can be reached"),
        ({"CONVEYOR_GATEWAY__PUBLISHED": "0.0.0.0"}, r"gateway\.published: 0\.0\.0\.0 can be"),
        (
            {"CONVEYOR_GATEWAY__TOKENS__ANN__TOKEN_ENV": "NOT_THERE"},
            r"gateway\.tokens\.ann\.token_env: the environment variable NOT_THERE is not set",
        ),
        (
            {"CONVEYOR_GATEWAY__TOKENS__ANN__TOKEN_FILE": "/nowhere/token"},
            r"gateway\.tokens\.ann\.token_file: /nowhere/token cannot be read",
        ),
    ],
)
async def test_starts_that_would_protect_nothing(
    tmp_path: Path, env: dict[str, str], problem: str
) -> None:
    await refused(tmp_path, env, problem)


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        (["short"], r"gateway\.tokens\.t0: the token must have 16 to 4096 letters"),
        (["pässword-of-the-house"], r"gateway\.tokens\.t0: .* of ASCII and no spaces"),
        (["two words of a token"], r"gateway\.tokens\.t0: the token must have"),
        ([" \n"], r"gateway\.tokens\.t0\.token_file: .* is empty"),
        ([TOKEN, TOKEN], r"gateway\.tokens\.t1: the token of t0 is the same"),
    ],
)
async def test_tokens_that_are_none(tmp_path: Path, tokens: list[str], problem: str) -> None:
    env = {}
    for index, token in enumerate(tokens):
        file = tmp_path / f"t{index}"
        file.write_text(token)
        env[f"CONVEYOR_GATEWAY__TOKENS__T{index}__TOKEN_FILE"] = str(file)
    with pytest.raises(StartError) as failed:
        await start(tmp_path, env)
    assert failed.match(problem)
    assert not any(token.strip() and token in str(failed.value) for token in tokens)


async def start(tmp_path: Path, env: dict[str, str]) -> None:
    base = {
        "CONVEYOR_STORE__URL": f"sqlite:///{tmp_path}",
        "CONVEYOR_GATEWAY__HTTP": "127.0.0.1:0",
        "CONVEYOR_GATEWAY__GRPC": "127.0.0.1:0",
    }
    async with in_process(build, load(None, base | env), name="gateway"):
        raise AssertionError("started")


async def refused(tmp_path: Path, env: dict[str, str], problem: str) -> None:
    with pytest.raises(StartError, match=problem):
        await start(tmp_path, env)
