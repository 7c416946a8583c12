"""The environment in which peers run: their pins are none of ours."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = Path(__file__).with_name("peers.txt")
_VENV = ROOT / ".dev" / "bench-peers"


def peers_python() -> Path | str:
    """The interpreter of the peers' environment, made at the first call; or why there is none."""
    python = _VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = _VENV / "requirements.txt"
    wanted = REQUIREMENTS.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    if not python.exists():
        venv.create(_VENV, with_pip=True)
    print(f"installing the peers into {_VENV.relative_to(ROOT)}", file=sys.stderr)
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", REQUIREMENTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"pip could not install {REQUIREMENTS.name}: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
    stamp.write_text(wanted)
    return python
