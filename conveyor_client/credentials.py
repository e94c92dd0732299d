"""What a client shows a gateway, and what it asks of it: bearer token and TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS to a gateway, with PEM files.

    `ca_file`: who signed its certificate; left out, whoever the system trusts. `cert_file` and
    `key_file`: our own certificate, for a gateway that asks for one. `server_name`: the name in its
    certificate, when it is not the one that is dialled.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Return it for a channel. Raises `OSError` for a file that cannot be read."""
        import grpc

        def read(path: Path | None) -> bytes | None:
            return None if path is None else path.read_bytes()

        return grpc.ssl_channel_credentials(
            root_certificates=read(self.ca_file) or _system_roots(),
            private_key=read(self.key_file),
            certificate_chain=read(self.cert_file),
        )


def _system_roots() -> bytes | None:
    """The certificates that this system trusts: the library brings a list of its own instead."""
    import ssl

    path = ssl.get_default_verify_paths().cafile
    return Path(path).read_bytes() if path else None
