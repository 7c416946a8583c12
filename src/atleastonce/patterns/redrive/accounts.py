"""What a run over dead letters did."""

from __future__ import annotations

import msgspec


class Redriven(msgspec.Struct, frozen=True):
    """What a redrive did.

    Attributes:
        matched: dead letters looked at and wanted.
        redriven: went back, confirmed.
        skipped: looked at and left: not wanted, or redriven too often already.
        failed: wanted, but the copy was not confirmed; still dead.
        refailed: died again while the run lasted, as far as it saw them.
        looped: those of the skipped that were redriven too often already.
        dry_run: whether nothing was moved, only counted.
        stopped: why it ended before the end; "" if it did not.
        seconds: how long it took.
    """

    matched: int = 0
    redriven: int = 0
    skipped: int = 0
    failed: int = 0
    refailed: int = 0
    looped: int = 0
    dry_run: bool = False
    stopped: str = ""
    seconds: float = 0.0


class Purged(msgspec.Struct, frozen=True):
    """What a purge did.

    Attributes:
        matched: dead letters that were meant.
        purged: gone for good; fewer than matched where the broker did not take out some, which are there again.
        skipped: looked at and left.
        dry_run, stopped, seconds: as of `Redriven`.
    """

    matched: int = 0
    purged: int = 0
    skipped: int = 0
    dry_run: bool = False
    stopped: str = ""
    seconds: float = 0.0
