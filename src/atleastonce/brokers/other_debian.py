"""Software of another Debian release: a whole system of it in the cache, run in a mount namespace. Needs root.

For versions that this machine's distribution does not have; what users of it need themselves comes from `debian`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from . import debian
from .cache import install_once
from .model import Unavailable
from .progress import Progress, watched
from .tools import run

_ARCHIVE = "http://deb.debian.org/debian"

INSIDE = "/srv"
"""Where a broker's own directory is seen from within."""

# A mount of its own for each process: several brokers of one root do not see each other's directory. Each command replaces
# the one before it, so that the process that is recorded is the server.
_ENTER = 'mount --bind "$1" "$2/srv" && mount -t proc proc "$2/proc" && shift && exec chroot "$@"'


def install(name: str, package: str, suite: str, progress: Progress) -> Path:
    """The root of a Debian ``suite`` with ``package``, in which no service was started. Raises `Unavailable`."""
    for tool in ("chroot", "unshare", "wget"):
        if shutil.which(tool) is None:
            raise Unavailable(name, f"there is no {tool}: {package} of Debian {suite} needs it")
    if os.geteuid() != 0:
        raise Unavailable(name, f"{package} of Debian {suite} runs in a root of its own, which only root can enter")

    def build(folder: Path) -> None:
        usr = _debootstrap(name, progress)
        scripts = usr / "share" / "debootstrap" / "scripts"
        # One of an older release does not know the names of later ones; all are made by the same script.
        known = [] if (scripts / suite).exists() else [str(scripts / "sid")]
        argv = [str(usr / "sbin" / "debootstrap"), "--variant=minbase", suite, str(folder), *_mirror(name), *known]
        with watched(progress, name, f"fetching Debian {suite}", folder, 250_000_000):
            # It leaves /proc mounted in the new root, where whoever copies the cache would copy the kernel's memory.
            run(name, "debootstrap", ["unshare", "--mount", *argv], env={"DEBOOTSTRAP_DIR": str(scripts.parent)})
        (folder / "usr" / "sbin" / "policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        (folder / "usr" / "sbin" / "policy-rc.d").chmod(0o755)
        (folder / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
        for file in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
            if Path(file).exists():
                (folder / file[1:]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / file[1:])
        for extra in Path("/etc/apt/apt.conf.d").glob("99*"):  # proxies, and what else was set by hand
            shutil.copy(extra, folder / "etc" / "apt" / "apt.conf.d")
        apt = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", package]
        with watched(progress, name, f"installing {package}", folder, 500_000_000):
            argv = enter(folder, folder / "mnt", apt)
            run(name, f"apt-get install {package}", argv)

    return install_once(f"{name}-debian-{suite}-{os.uname().machine}", build)


def _debootstrap(name: str, progress: Progress) -> Path:
    """Where debootstrap is: this machine's ``/usr``, or one in the cache."""
    if shutil.which("debootstrap") is not None:
        return Path("/usr")

    def build(folder: Path) -> None:
        debian.unpack(name, "debootstrap", ("debootstrap",), folder, progress)

    return install_once(f"debootstrap-{debian.release()}", build) / "usr"


def enter(root: Path, directory: Path, argv: list[str]) -> list[str]:
    """The command that runs ``argv`` within ``root``, where ``directory`` is `INSIDE`."""
    return ["unshare", "--mount", "sh", "-c", _ENTER, "sh", str(directory), str(root), *argv]


def _mirror(name: str) -> list[str]:
    """The archive that this machine's apt uses, or Debian's own."""
    if shutil.which("apt-get") is None:
        return [_ARCHIVE]
    found = run(name, "apt-get indextargets", ["apt-get", "indextargets", "--format", "$(SITE)"])
    sites = [line.strip() for line in found.splitlines() if line.strip().rstrip("/").endswith("/debian")]
    return [*sites, _ARCHIVE][:1]
