"""A real PostgreSQL server of one's own, for tests and benches.

`initdb` once into a new directory, then as many databases as there are tests. The server listens on
a loopback port that stays the same over its restarts, and on a Unix socket. It can be stopped,
killed and started again as faults go. Nothing of the system's own clusters is touched. PostgreSQL
refuses to run as root: then the server belongs to the user `postgres` or `nobody`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pg8000.native

USER = "conveyor"
START_BOUND = 60.0
"""Seconds for a start on a machine that is busy with other things, after a crash too."""
STOP_BOUND = 30.0

# The system ends a server with the thread that started it (see `_wrapper`): so this one lasts.
_starter = ThreadPoolExecutor(1, thread_name_prefix="postgres-starter")

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


_EMPTY = """
DO $$ DECLARE name text; BEGIN
  FOR name IN SELECT nspname FROM pg_namespace
    WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
  LOOP EXECUTE format('DROP SCHEMA %I CASCADE', name); END LOOP;
  CREATE SCHEMA public;
END $$
"""


class PostgresMissing(RuntimeError):
    """No PostgreSQL server is installed here."""


def binaries() -> Path:
    """Directory of `initdb` and `postgres`, newest version first. Raises `PostgresMissing`."""
    found = shutil.which("postgres")
    if found and (Path(found).parent / "initdb").exists():
        return Path(found).parent
    installed = sorted(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")),
        key=lambda path: float(path.parent.name),
    )
    if not installed:
        raise PostgresMissing(
            "no PostgreSQL server found, neither in PATH nor in /usr/lib/postgresql; install the "
            "package postgresql"
        )
    return installed[-1]


@contextmanager
def postgres_server(**settings: str) -> Iterator[PostgresServer]:
    """A running server, gone with everything in it at the end. `settings` as `PostgresServer`."""
    server = PostgresServer(**settings)
    try:
        server.start()
        yield server
    finally:
        server.destroy()


class PostgresServer:
    """One server. `start` it first, `destroy` it last; in between it may stop and start at will.

    `settings` are PostgreSQL's own. By default `fsync` is off: what was committed survives every
    end of the server, but not of the machine. Turn it on where the cost of a commit matters.
    """

    def __init__(self, **settings: str) -> None:
        self._bin = binaries()
        self.directory = Path(tempfile.mkdtemp(prefix="conveyor-pg-"))
        self.port = 0
        self._account = _account()
        if self._account is not None:
            os.chown(self.directory, self._account.pw_uid, self._account.pw_gid)
        self._data = self.directory / "data"
        self._settings = {
            "fsync": "off",
            "full_page_writes": "off",
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "jit": "off",
            "shared_buffers": "64MB",
            "max_connections": "100",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
            "log_line_prefix": "%m [%p] %a ",
            "lc_messages": "C",
        } | settings
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._empty: list[str] = []

    # Its life

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.directory / "server.log"

    @property
    def running(self) -> bool:
        """Whether its main process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and wait until it takes connections; the first time it is made."""
        if not self._data.exists():
            self._run("initdb", "-D", str(self._data), "-U", USER, "-E", "UTF8", "--no-sync",
                      "--locale=C.UTF-8", "--auth=trust", "--no-instructions")  # fmt: skip
        again = self.port != 0
        for _ in range(20):
            self.port = self.port if again else _free_port()
            if self._started():
                return
            if "could not create any TCP/IP sockets" not in self._end_of_log():
                break
            time.sleep(0.1)  # somebody was faster; a port that clients know is not given up
        raise RuntimeError(f"PostgreSQL did not start:\n{self._end_of_log()}")

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop it: `smart` waits for clients, `fast` ends them, `immediate` is as a crash."""
        assert self._process is not None, "it was not started"
        self._process.send_signal(_STOP_SIGNALS[mode])
        self._process.wait(STOP_BOUND)
        self._process = None

    def kill(self) -> None:
        """Kill all its processes with SIGKILL."""
        assert self._process is not None, "it was not started"
        # The main process must not notice: it would put the others back.
        self._process.send_signal(signal.SIGSTOP)
        children = self._children()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait(STOP_BOUND)
        self._process = None
        # As long as one of them is left the next server finds its shared memory in use.
        end = time.monotonic() + STOP_BOUND
        while any(_lives(pid) for pid in children) and time.monotonic() < end:
            time.sleep(0.01)

    def restart(self, mode: StopMode = "immediate") -> None:
        """Stop it and start it again, on the same port."""
        self.stop(mode)
        self.start()

    def destroy(self) -> None:
        """End it whatever its state, and remove its files."""
        if self.running:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    # Its databases

    def create_database(self) -> str:
        """Make an empty database and return its address."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database, whoever is connected."""
        self.execute(f"DROP DATABASE IF EXISTS {_name(url)} WITH (FORCE)")

    @contextmanager
    def database(self) -> Iterator[str]:
        """The address of an empty database, for the block. The next block gets it emptied."""
        url = self._empty.pop() if self._empty else self.create_database()
        # To get ready for TLS that this server does not have takes longer than to connect.
        yield f"{url}?sslmode=disable"
        # Cheaper than to remove the database and make another.
        with closing(self._connect(url)) as connection:
            connection.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.run(_EMPTY)
        self._empty.append(url)

    def ask_for_password(self, role: str, password: str) -> None:
        """Make a superuser `role`, and believe it only with its password. For good."""
        self.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{password}'")
        (self._data / "pg_hba.conf").write_text(
            f"local all all trust\nhost all {role} 127.0.0.1/32 scram-sha-256\n"
            "host all all 127.0.0.1/32 trust\n"
        )
        self.execute("SELECT pg_reload_conf()")

    def url(self, database: str = "postgres") -> str:
        """Address of a database, over TCP."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres", **values: Any) -> list[Any]:
        """Run one statement as the superuser, outside of a transaction; returns its rows.

        `database`: a name, or an address. `values` fill `:name` in the statement.
        """
        with closing(self._connect(database)) as connection:
            return list(connection.run(statement, **values) or ())

    # Inside

    def _connect(self, database: str) -> pg8000.native.Connection:
        return pg8000.native.Connection(
            USER,
            unix_sock=str(self.directory / f".s.PGSQL.{self.port}"),
            database=_name(database),
            ssl_context=False,
        )

    def _started(self) -> bool:
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self._process = process = _starter.submit(self._launch, command, log).result()
        end = time.monotonic() + START_BOUND
        while time.monotonic() < end:
            if process.poll() is not None:
                self._process = None
                return False
            if self._takes_connections():
                return True
            time.sleep(0.02)
        self.kill()
        return False

    def _launch(self, command: list[str], log: BinaryIO) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._wrapper(ends_with_us=True), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **self._place(),
        )

    def _takes_connections(self) -> bool:
        # The server says so in its own file; a connection would only tell the same for more.
        try:
            lines = (self._data / "postmaster.pid").read_text("utf-8").splitlines()
        except FileNotFoundError:
            return False
        assert self._process is not None
        ours = bool(lines) and lines[0] == str(self._process.pid)
        return ours and len(lines) >= 8 and lines[7].strip() == "ready"

    def _children(self) -> list[int]:
        assert self._process is not None
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in path.read_text("ascii").split()]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._wrapper(), str(self._bin / program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._place(),
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}")

    def _wrapper(self, *, ends_with_us: bool = False) -> list[str]:
        """Becomes the server's user. Not by `Popen`, which would have to fork beside threads."""
        words = ["setpriv"]
        if self._account is not None:
            words += [f"--reuid={self._account.pw_uid}", f"--regid={self._account.pw_gid}"]
            words += ["--clear-groups"]
        if ends_with_us:  # a server must not stay behind when the tests are killed
            words += ["--pdeathsig", "KILL"]
        return words if len(words) > 1 else []

    def _place(self) -> dict[str, Any]:
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        return {"env": environment, "cwd": self.directory}

    def _end_of_log(self) -> str:
        return self.log.read_text("utf-8", "replace")[-3000:] if self.log.exists() else ""


def _name(database: str) -> str:
    return database.rpartition("/")[2].partition("?")[0]


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _free_port() -> int:
    # Below the ports that systems give to outgoing connections: it must be free after a restart.
    while True:
        port = random.randrange(20_000, 32_000)
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
