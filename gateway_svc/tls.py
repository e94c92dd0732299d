"""TLS of both doors, from the files that the configuration names."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from svckit.errors import StartError
from svckit.settings_model import TlsSettings


@dataclass(frozen=True, slots=True)
class Tls:
    """What both servers need: gRPC its own kind of credentials, HTTP a context."""

    grpc: grpc.ServerCredentials
    http: ssl.SSLContext


def load_tls(settings: TlsSettings) -> Tls | None:
    """Read the files; `None` when TLS is not configured.

    Raises `StartError` naming the key for a file that cannot be read or does not fit, since the
    gRPC library says of such files only that no connection comes about.
    """
    if not settings.cert_file:
        return None
    certificate = _read("cert_file", settings.cert_file)
    key = _read("key_file", settings.key_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(_path(settings.cert_file), _path(settings.key_file), _no_password)
    except (ssl.SSLError, OSError):
        raise StartError(
            "gateway.tls: cert_file and key_file must be a certificate and its private key, in "
            "PEM, the key without a password"
        ) from None
    authority = None
    if settings.client_ca:
        authority = _read("client_ca", settings.client_ca)
        try:
            context.load_verify_locations(_path(settings.client_ca))
        except (ssl.SSLError, OSError):
            raise StartError("gateway.tls.client_ca: must hold certificates, in PEM") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return Tls(
        grpc=grpc.ssl_server_credentials(
            [(key, certificate)],
            root_certificates=authority,
            require_client_auth=authority is not None,
        ),
        http=context,
    )


def _no_password() -> str:
    # Left out, the library would ask for one at the terminal.
    raise OSError("the key has a password")


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _read(key: str, text: str) -> bytes:
    try:
        return _path(text).read_bytes()
    except OSError as error:
        raise StartError(
            f"gateway.tls.{key}: {_path(text)} cannot be read: {error.strerror}"
        ) from None
