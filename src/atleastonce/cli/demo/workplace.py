"""Where one run of the demo keeps its queue, ledgers and logs."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from atleastonce.cli.output import note

_PREFIX = "atleastonce-demo-"
_OWNER = "owner"


class Workplace:
    """A directory, removed at the end unless it is worth keeping."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keep = False


@contextlib.contextmanager
def workplace() -> Iterator[Workplace]:
    """A temporary directory that survives the block only on request; those of killed runs are removed, too."""
    _sweep(Path(tempfile.gettempdir()))
    place = Workplace(Path(tempfile.mkdtemp(prefix=_PREFIX)))
    owner = place.path / _OWNER
    owner.write_text(str(os.getpid()))
    try:
        yield place
    finally:
        if place.keep:
            owner.unlink()
            note(f"ledgers and logs are kept in {place.path}")
        else:
            shutil.rmtree(place.path, ignore_errors=True)


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):  # another user's, or kept on purpose: it has no owner
            try:
                os.kill(int((path / _OWNER).read_text()), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)
