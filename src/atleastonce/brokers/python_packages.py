"""Software that comes as Python packages: each set in a virtual environment of its own, every file checked by SHA-256.

pip's own configuration applies (`PIP_*`, `pip.conf`): index, proxy, certificates.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from .cache import install_once
from .model import Unavailable
from .progress import Progress, watched
from .tools import PINS, run


def environment(
    name: str,
    pins: str,
    progress: Progress,
    *,
    megabytes: int,
    text: str,
    version: str,
    after: Callable[[Path], None] = lambda _: None,
) -> Path:
    """A virtual environment in the cache with the packages of `pins/<pins>.txt` (hashes required, wheels only).

    `version` is part of the cache key, so that a new pin makes a new environment; `megabytes` is the size after
    installation, for the progress bar; `after` finishes it before it becomes visible. Do not run its scripts: their
    first lines name the place where it was built. Use its `bin/python`.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"

    def build(folder: Path) -> None:
        requirements = PINS / f"{pins}.txt"
        with watched(progress, name, text, folder, megabytes * 1_000_000):
            # Without a pip of its own an environment is made in a tenth of a second.
            with_pip = importlib.util.find_spec("pip") is None
            create = [sys.executable, "-m", "venv", str(folder)]
            run(name, "making a virtual environment", [*create, *([] if with_pip else ["--without-pip"])])
            inside = str(folder / "bin" / "python")
            pip = [inside, "-m", "pip"] if with_pip else [sys.executable, "-m", "pip", "--python", inside]
            pip += ["install", "--quiet", "--no-input", "--no-deps", "--no-compile", "--no-cache-dir"]
            pip += ["--require-hashes", "--only-binary", ":all:", "-r", str(requirements)]
            env = {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "TMPDIR": str(_scratch(folder))}
            run(name, f"pip install -r {requirements.name}", pip, env=env)
            _scratch(folder).rmdir()
            after(folder)

    return install_once(f"{pins}-{version}-py{python}", build)


def site_packages(folder: Path) -> Path:
    """Where the packages of an environment lie."""
    found = list(folder.glob("lib/python3.*/site-packages"))
    if len(found) != 1:
        raise Unavailable(folder.name, f"{folder} is not a virtual environment: remove it and try again")
    return found[0]


def _scratch(folder: Path) -> Path:
    """pip's downloads go inside the watched directory, so that the progress bar sees them grow."""
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    return scratch
