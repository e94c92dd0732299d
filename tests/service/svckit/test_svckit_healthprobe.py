"""`conveyor-health` asks real servers, as a process of its own."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc import aio

from svckit import healthprobe
from svckit.grpc import health
from svckit.grpc.server import make_server
from svckit.testing import free_port

SERVICE = "conveyor.scheduler.v1.SchedulerService"


async def probe(*arguments: str) -> tuple[int, str]:
    """As an engine runs it; in a process, since what it imports is what it costs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-X",
        "importtime",
        str(Path(healthprobe.__file__)),
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, imported = await process.communicate()
    assert b"grpc" not in imported
    assert b"pydantic" not in imported
    return process.returncode or 0, out.decode().strip()


async def serve(credentials: grpc.ServerCredentials | None = None) -> tuple[aio.Server, str]:
    server = make_server()
    answers = health.Health([SERVICE])
    health.add_to(server, answers)
    await answers.set_serving(False, alive=True)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    return server, f"127.0.0.1:{port}"


async def test_what_a_server_answers() -> None:
    server, address = await serve()
    try:
        # A standby: the process is well, the service is not.
        assert await probe(address) == (0, "SERVING")
        assert await probe(address, SERVICE) == (1, "NOT_SERVING")
        assert await probe(address, "conveyor.none") == (1, "no answer: the call was refused")
    finally:
        await server.stop(None)
    assert await probe(address) == (1, "no answer: Connection refused")


async def test_servers_that_are_none() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await probe(f"127.0.0.1:{port}") == (1, "no answer: this is no gRPC server")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        healthprobe.TIMEOUT_SECONDS, kept = 0.1, healthprobe.TIMEOUT_SECONDS
        try:
            with pytest.raises(TimeoutError):
                healthprobe.check(f"127.0.0.1:{silent.getsockname()[1]}")
        finally:
            healthprobe.TIMEOUT_SECONDS = kept


WRONG = [["here"], [":1"], ["a:b"], ["a:1", "b", "c"], ["a:1", "b" * 121]]


@pytest.mark.parametrize("arguments", WRONG)
async def test_it_says_how_it_is_called(arguments: list[str]) -> None:
    assert (await probe(*arguments))[0] == 2


def self_signed(directory: Path) -> tuple[Path, Path]:
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    files = ["-subj", "/CN=elsewhere.example", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return cert, key


@pytest.mark.parametrize("wants_certificate", [False, True])
async def test_a_gateway_with_tls(tmp_path: Path, wants_certificate: bool) -> None:
    cert, key = self_signed(tmp_path)
    pair = [(key.read_bytes(), cert.read_bytes())]
    credentials = grpc.ssl_server_credentials(
        pair,
        root_certificates=cert.read_bytes() if wants_certificate else None,
        require_client_auth=wants_certificate,
    )
    server, address = await serve(credentials)
    try:
        code, found = await probe(address)
        assert (code, found[:7]) == (0, "SERVING")
        assert ("certificate" in found) is wants_certificate
        if not wants_certificate:
            assert await probe(address, SERVICE) == (1, "NOT_SERVING")
    finally:
        await server.stop(None)


def test_it_explains_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["conveyor-health", "--help"])
    with pytest.raises(SystemExit) as ended:
        healthprobe.main()
    assert ended.value.code == 0
    assert "Exit codes" in capsys.readouterr().out


async def test_nobody_listens() -> None:
    assert await probe(f"127.0.0.1:{free_port()}") == (1, "no answer: Connection refused")
