"""MariaDB, from the distribution's packages, run in place: what `mysql://` addresses are answered by here.

Every commit is flushed (the server's own default), so that what it confirmed survives `kill -9`. Whoever can reach the
loopback address is root without a password.
"""

from __future__ import annotations

import os
from pathlib import Path

from . import debian, ready
from .cache import install_once
from .model import HOST, Command, Image, Place, Recipe, Unavailable
from .progress import Progress
from .tools import run

PORTS = {"main": 3306}
DATABASE = "test"  # the one that a new data directory has

_IMAGE = {"MARIADB_ALLOW_EMPTY_ROOT_PASSWORD": "1", "MARIADB_DATABASE": DATABASE}


def install(progress: Progress) -> Path:
    """The server unpacked into the cache. Raises `Unavailable` where there is no apt."""

    def build(folder: Path) -> None:
        # The client has what mariadb-install-db calls.
        debian.unpack("mysql", "mariadb-server-core mariadb-client-core", ("mariadb-",), folder, progress)
        if not (folder / "usr" / "sbin" / "mariadbd").exists():
            raise Unavailable("mysql", "the package of this distribution has an unknown layout")

    return install_once(f"mariadb-{debian.release()}", build)


def prepare(install: Path, place: Place) -> Command:
    """Make the data directory where it is new."""
    libraries = [str(path) for path in sorted(install.glob("usr/lib/*-linux-*"))]
    env = {"PATH": f"{os.defpath}:/usr/sbin:/sbin", "LD_LIBRARY_PATH": ":".join(libraries), "LC_ALL": "C.UTF-8"}
    user = ["--user=root"] if os.geteuid() == 0 else []
    base = install / "usr"
    if not (place.data / "mysql").exists():
        place.data.mkdir(parents=True, exist_ok=True)
        argv = [
            str(base / "bin" / "mariadb-install-db"),
            "--no-defaults",
            f"--basedir={base}",
            f"--datadir={place.data}",
        ]
        argv += ["--auth-root-authentication-method=normal", "--skip-name-resolve", *user]
        run("mysql", "mariadb-install-db", argv, cwd=place.directory, env=env, inherit=False)
    argv = [str(base / "sbin" / "mariadbd"), "--no-defaults", f"--basedir={base}", f"--datadir={place.data}", *user]
    argv += [f"--bind-address={HOST}", f"--port={place.port}", "--skip-name-resolve", "--plugin-dir=/nonexistent"]
    # A server that starts removes what others left in the directory for temporary files, also what is in use.
    temporary = place.directory / "tmp"
    temporary.mkdir(exist_ok=True)
    argv += [f"--tmpdir={temporary}"]
    # A socket's path may not be longer than 107 bytes, so it is named from within: relative to the data directory.
    argv += ["--socket=sock", "--innodb-buffer-pool-size=128M", "--innodb-log-file-size=32M"]
    return Command(argv, env, str(place.data))


RECIPE = Recipe(
    name="mysql",
    ports=PORTS,
    image=Image("mariadb:10.11.18", PORTS, env=lambda _place: _IMAGE),
    url=lambda port: f"mysql://root@{HOST}:{port}/{DATABASE}",
    install=install,
    prepare=prepare,
    probe=ready.mysql,
)
