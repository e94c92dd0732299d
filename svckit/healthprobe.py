"""`conveyor-health`: asks a service for its health, as container engines and supervisors do.

They ask every few seconds for as long as a service lives, each time with a new process. Importing
the gRPC library would cost more than all that an idle suite does, so one call of
`grpc.health.v1.Health/Check` is written and read here by hand: a preface and three frames there, a
few frames back, of which only the lengths and one message matter.
"""

import sys
from typing import NoReturn, Protocol

USAGE = """\
usage: conveyor-health [HOST:PORT [SERVICE]]

Asks the service at HOST:PORT (default 127.0.0.1:50050, the gateway) for its health: that of the
process, or with SERVICE that of one gRPC service, for example
conveyor.scheduler.v1.SchedulerService, which only a scheduler serves that leads.
A gateway with TLS is asked through TLS, whatever its certificate says; one that wants a
certificate of its clients is taken for healthy when it listens.

Prints what it found. Exit codes: 0 serving, 1 not serving or no answer, 2 called wrongly."""
DEFAULT = "127.0.0.1:50050"
TIMEOUT_SECONDS = 4.0

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_STATUS = {1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


class NoAnswerError(Exception):
    """Why there is no answer."""


class Stream(Protocol):
    """A connection: a socket, with or without TLS."""

    def sendall(self, data: bytes, /) -> None:
        """Send everything."""

    def recv(self, size: int, /) -> bytes:
        """Receive something; empty at the end."""


def request(service: str, *, encrypted: bool = False) -> bytes:
    """Return all bytes of the call, from the connection's first one."""
    headers = (
        b"\x83"  # :method POST
        + (b"\x87" if encrypted else b"\x86")  # :scheme
        + _literal(b"\x04", b"/grpc.health.v1.Health/Check")  # :path
        + _literal(b"\x01", b"localhost")  # :authority
        + _literal(b"\x0f\x10", b"application/grpc")  # content-type
        + _literal(b"\x00\x02te", b"trailers")
    )
    name = service.encode()
    message = b"\x0a" + bytes([len(name)]) + name if name else b""
    return (
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, headers)
        + _frame(_DATA, _END_STREAM, 1, b"\x00" + len(message).to_bytes(4, "big") + message)
    )


def _literal(name: bytes, value: bytes) -> bytes:
    return name + bytes([len(value)]) + value


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return b"".join(
        (len(payload).to_bytes(3, "big"), bytes([kind, flags]), stream.to_bytes(4, "big"), payload)
    )


def ask(stream: Stream, service: str, *, encrypted: bool = False) -> str:
    """Return the status that the server answers with. Raises `NoAnswerError` and `OSError`."""
    stream.sendall(request(service, encrypted=encrypted))
    answer = b""
    while True:
        head = _exactly(stream, 9)
        size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        if kind > 9 or size > 1 << 16:
            raise NoAnswerError("this is no gRPC server")
        payload = _exactly(stream, size)
        if kind == _DATA:
            answer += payload
            if len(answer) >= 5 + int.from_bytes(answer[1:5], "big"):
                # One field of one byte; a status of 0 is left out.
                return _STATUS.get(answer[6] if len(answer) > 6 else 0, "UNKNOWN")
        # Trailers without a message: an error, for example of a service that it does not know.
        if kind in (_RESET, _GOAWAY) or (kind == _HEADERS and flags & _END_STREAM):
            raise NoAnswerError("the call was refused")


def _exactly(stream: Stream, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = stream.recv(size - len(found))
        if not more:
            raise EOFError
        found += more
    return found


def check(address: str, service: str = "") -> str:
    """Return the status of a server at `host:port`. Raises `NoAnswerError` and `OSError`."""
    import socket

    host, _, port = address.rpartition(":")
    where = (host.strip("[]"), int(port))
    try:
        with socket.create_connection(where, timeout=TIMEOUT_SECONDS) as plain:
            return ask(plain, service)
    except (EOFError, ConnectionResetError):
        pass  # It wants TLS, or it is just stopping.
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is told that way, and the certificate is for the name that clients use.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(where, timeout=TIMEOUT_SECONDS) as plain:
        try:
            wrapped = context.wrap_socket(plain)
        except (ssl.SSLError, ConnectionResetError, EOFError):
            raise NoAnswerError("the connection was closed") from None
        try:
            return ask(wrapped, service, encrypted=True)
        except (ssl.SSLError, ConnectionResetError, EOFError):
            # With TLS 1.3 a client hears only after the handshake that it has to show one.
            return "SERVING (it wants a certificate of its clients, so more is not known)"


def main() -> NoReturn:
    """Ask, print and exit; see `USAGE`."""
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)  # noqa: T201
        sys.exit(0)
    address = arguments[0] if arguments else DEFAULT
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or len(arguments) > 2 or any(len(a) > 120 for a in arguments):
        print(USAGE, file=sys.stderr)  # noqa: T201
        sys.exit(2)
    try:
        found = check(address, arguments[1] if len(arguments) > 1 else "")
    except NoAnswerError as err:
        found = f"no answer: {err}"
    except OSError as err:
        found = f"no answer: {err.strerror or err}"
    print(found)  # noqa: T201
    sys.exit(0 if found.startswith("SERVING") else 1)


if __name__ == "__main__":
    main()
