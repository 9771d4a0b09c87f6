"""A PostgreSQL server for tests, from the system's own package. It refuses to run as root, so root lends it a user."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT_RUNS_AS = "postgres"


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, of the newest version there is."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@dataclass
class Server:
    """Listens on 127.0.0.1 alone."""

    programs: Path
    folder: Path
    port: int

    def run(self, program: str, *arguments: str) -> None:
        lent = ["runuser", "-u", ROOT_RUNS_AS, "--"] if os.getuid() == 0 else []
        command = [*lent, str(self.programs / program), *arguments]
        done = subprocess.run(command, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout

    def make(self) -> None:
        self.run("initdb", "-D", str(self.folder / "data"), "-U", "tester", "--auth=trust", "--encoding=UTF8", "-N")

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300"
        log = str(self.folder / "log")
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        """At once, as a power cut does."""
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")

    def database(self, name: str) -> str:
        """The address of a new database."""
        self.run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tester", name)
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/{name}"


@contextmanager
def server(programs: Path) -> Iterator[Server]:
    """A server with a data folder of its own, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="lora-sweep-postgres-", dir="/tmp"))
    if os.getuid() == 0:
        shutil.chown(folder, ROOT_RUNS_AS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        there = Server(programs, folder, free.getsockname()[1])
    try:
        there.make()
        there.start()
        yield there
    finally:
        there.stop()
        shutil.rmtree(folder)
