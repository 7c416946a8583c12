"""Software from Debian or Ubuntu without root: downloaded by apt, unpacked into a directory, nothing installed.

apt works on lists of its own inside the build directory, so the system's may be empty, old or unwritable; its
sources, proxies and keys are the system's. What comes is verified by apt itself: package lists by the
archive's signature, packages by the digests in these lists. There are no pins of ours: a distribution replaces
versions within a release when it fixes them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .model import Unavailable
from .progress import Progress, watched
from .tools import run

STATUS = Path("/var/lib/dpkg/status")


def release() -> str:
    """`debian-12-x86_64`: what the unpacked programs are linked against."""
    values: dict[str, str] = {}
    for file in (Path("/etc/os-release"), Path("/usr/lib/os-release")):
        if file.exists():
            rows = (line.partition("=") for line in file.read_text().splitlines())
            values = {key: value.strip('"') for key, _, value in rows}
            break
    return f"{values.get('ID', 'unknown')}-{values.get('VERSION_ID', 'rolling')}-{os.uname().machine}"


def unpack(name: str, package: str, own: tuple[str, ...], folder: Path, progress: Progress) -> None:
    """Unpack `package` and what it needs and this machine lacks into `folder` (as `folder/usr/...`).

    `package` may name several, with spaces between them.

    Packages whose names start with one of `own` are unpacked even where they are installed: the tree must be whole.
    Of the others only libraries are taken: what maintainer scripts use is not needed to run a program in place.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(name, f"there is no {tool}: native {name} needs Debian or Ubuntu, or a Docker engine")
    state = folder.parent / f"{folder.name}.apt"
    for part in ("lists/partial", "cache/archives/partial", "debs"):
        (state / part).mkdir(parents=True)
    stanzas = STATUS.read_text().split("\n\n") if STATUS.exists() else []
    ours = tuple(f"Package: {prefix}" for prefix in own)
    (state / "status").write_text("\n\n".join(each for each in stanzas if not each.startswith(ours)))
    apt = ["apt-get", "-q", "-o", f"Dir::State={state}", "-o", f"Dir::State::lists={state}/lists"]
    apt += ["-o", f"Dir::State::status={state}/status", "-o", f"Dir::Cache={state}/cache"]
    # apt as root would fetch as a user of its own, who cannot enter the cache.
    apt += ["-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1", "-o", "Acquire::Languages=none"]
    with watched(progress, name, "fetching package lists", state / "lists", 60_000_000):
        run(name, "apt-get update", [*apt, "update"])
    plan = run(
        name, f"apt-get -s install {package}", [*apt, "-s", "install", "--no-install-recommends", *package.split()]
    )
    names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    wanted = [each for each in names if each.startswith((*own, "lib"))]
    with watched(progress, name, "fetching packages", state / "debs", 37_000_000):
        run(name, "apt-get download", [*apt, "download", *wanted], cwd=state / "debs")
    with watched(progress, name, "unpacking", folder, 66_000_000):
        for deb in sorted((state / "debs").glob("*.deb")):
            run(name, f"dpkg-deb -x {deb.name}", ["dpkg-deb", "-x", str(deb), str(folder)])
    shutil.rmtree(state)
    for unread in ("doc", "man", "lintian"):
        shutil.rmtree(folder / "usr" / "share" / unread, ignore_errors=True)
