"""The cache: where installed brokers live, one directory per installation, each complete or absent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def cache_dir() -> Path:
    """`$ALO_CACHE`, else `$XDG_CACHE_HOME/atleastonce`, else `~/.cache/atleastonce`."""
    if chosen := os.environ.get("ALO_CACHE"):
        return Path(chosen).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).absolute() / "atleastonce"
    return Path.home() / ".cache" / "atleastonce"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between threads and processes. The kernel drops it when its owner dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def install_once(key: str, build: Callable[[Path], None]) -> Path:
    """The directory `key` of the cache, built once.

    `build` fills a temporary directory beside it, which is renamed when it returns: an interrupted download leaves
    nothing that looks installed. A second process that wants the same waits for the first.
    """
    root = cache_dir()
    target = root / "installed" / key
    if target.is_dir():
        return target
    with locked(root / "locks" / f"{key}.lock"):
        if target.is_dir():
            return target
        building = root / "building" / key
        remove_tree(building)
        building.mkdir(parents=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            build(building)
            building.rename(target)
        finally:
            remove_tree(building)
    return target


def remove_tree(path: Path) -> None:
    """Remove a directory, also one in which a tool left read-only directories. Absent is fine."""
    if not path.exists():
        return
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
