"""Dead letters by what failed: one row for each fingerprint."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from atleastonce.channels import Source
from atleastonce.patterns.redrive.letters import Letter


class Group(msgspec.Struct, frozen=True):
    """The dead letters of one source with one fingerprint. The shape of ``dlq list --json``.

    Attributes:
        channel, group: whose dead letters they are; a queue has no group.
        fingerprint: of the failure: its type and place.
        error_type, error_message, stage: of the latest one; "" where nobody wrote it down.
        count: how many.
        first_failed, last_failed: seconds since the epoch; None where nobody knows.
        example_id: the latest one's message.
    """

    channel: str
    group: str | None
    fingerprint: str
    error_type: str
    error_message: str
    stage: str
    count: int
    first_failed: float | None
    last_failed: float | None
    example_id: str


class _Seen:
    __slots__ = ("count", "example", "first", "last")

    example: Letter

    def __init__(self) -> None:
        self.count = 0
        self.first: float | None = None
        self.last: float | None = None


class Groups:
    """Counts letters as they are read; keeps one of each group."""

    def __init__(self, home: Source) -> None:
        self._home = home
        self._seen: dict[str, _Seen] = {}

    def add(self, letters: Iterable[Letter]) -> None:
        """One list. When it has been given back, only what is shown of it is still there."""
        shown: dict[str, Letter] = {}
        for letter in letters:
            fingerprint, first, died = letter.brief
            seen = self._seen.get(fingerprint)
            if seen is None:
                seen = self._seen[fingerprint] = _Seen()
                shown[fingerprint] = letter
            seen.count += 1
            if first is None:
                first = died
            if first is not None and (seen.first is None or first < seen.first):
                seen.first = first
            if died is not None and (seen.last is None or died >= seen.last):
                seen.last = died
                shown[fingerprint] = letter
        for fingerprint, letter in shown.items():
            self._seen[fingerprint].example = letter.kept()

    def rows(self) -> list[Group]:
        """Most frequent first."""
        rows = [
            Group(
                channel=self._home.channel.name,
                group=self._home.group,
                fingerprint=fingerprint,
                error_type=seen.example.obituary.error_type,
                error_message=seen.example.obituary.error_message,
                stage=seen.example.obituary.stage,
                count=seen.count,
                first_failed=seen.first,
                last_failed=seen.last,
                example_id=seen.example.id,
            )
            for fingerprint, seen in self._seen.items()
        ]
        return sorted(rows, key=lambda row: (-row.count, row.fingerprint))
