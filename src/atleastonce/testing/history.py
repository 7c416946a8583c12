"""A history of what was sent and what was received, and the checker that finds what went wrong in it. Pure: no IO, no
clock.

The two logs are written independently and only compared afterwards: nothing is ever removed from an "expected" set
because a test made it fail, which is how losses hide. The checker's findings follow the invariants of any at-least-once
system: a confirmed send arrives (`Findings.lost`), nothing arrives that was not sent (`Findings.ghosts`), repeats are
counted (`Findings.duplicates`), one key's messages are first seen in the order of their sends (`Findings.reordered`)
and never handled twice at a time (`Findings.overlaps`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec

from atleastonce.contract import Status

Where = Literal["prefix", "middle", "postfix"]
"""Which part of a key's messages is missing. ``prefix``: nothing older arrived (a reader that started too late);
``postfix``: nothing newer arrived (a reader that stopped too early, a tail that was never durable); ``middle``: a hole
(an acknowledgement of what was not handled)."""


class Sent(msgspec.Struct, frozen=True, tag="sent"):
    """One send and how it ended, in the order in which sends of one key began."""

    id: str
    status: Status
    key: str = ""
    at: float = 0.0


class Received(msgspec.Struct, frozen=True, tag="received"):
    """One hand-out of a message.

    Attributes:
        id: whose.
        consumer: who got it.
        started, ended: when its handling ran, by one clock for all consumers; ``ended`` None if it never did.
        count: deliveries so far as the broker counts them; 0 where it does not.
    """

    id: str
    consumer: str = ""
    started: float = 0.0
    ended: float | None = None
    count: int = 0


class Lost(msgspec.Struct, frozen=True, order=True):
    """A confirmed send that never arrived."""

    id: str
    key: str
    where: Where


class Reordered(msgspec.Struct, frozen=True, order=True):
    """``late`` was sent before ``early`` with the same key, and first seen after it."""

    key: str
    late: str
    early: str


class Overlap(msgspec.Struct, frozen=True, order=True):
    """Two handlings of one key that ran at the same time."""

    key: str
    first: str
    second: str


class Findings(msgspec.Struct, frozen=True):
    """What a history shows. `ok` judges only what every system must keep; repeats and order are the caller's to judge.

    Attributes:
        lost: confirmed and never received.
        ghosts: received, though never sent, or refused.
        duplicates: how many *extra* hand-outs each message had.
        reordered: first receipts of one key against the order of its sends.
        overlaps: handlings of one key at the same time.
        unknown_arrived, unknown_missing: sends without an answer, by what became of them; both are legal.
    """

    lost: tuple[Lost, ...] = ()
    ghosts: tuple[str, ...] = ()
    duplicates: dict[str, int] = {}
    reordered: tuple[Reordered, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    unknown_arrived: int = 0
    unknown_missing: int = 0

    @property
    def ok(self) -> bool:
        """Nothing lost and no ghosts."""
        return not self.lost and not self.ghosts

    @property
    def clean(self) -> bool:
        """As in a run without faults: `ok`, each message once, every key in order, no overlap."""
        return self.ok and not self.duplicates and not self.reordered and not self.overlaps

    def __str__(self) -> str:
        parts = [
            _sample("lost", [f"{each.id} ({each.where} of key {each.key!r})" for each in self.lost]),
            _sample("ghosts", list(self.ghosts)),
            _sample("duplicated", [f"{id} +{extra}" for id, extra in self.duplicates.items()]),
            _sample("out of order", [f"{each.late} after {each.early} ({each.key!r})" for each in self.reordered]),
            _sample("at the same time", [f"{each.first} and {each.second} ({each.key!r})" for each in self.overlaps]),
        ]
        return "; ".join(filter(None, parts)) or "clean"


def _sample(what: str, items: list[str], most: int = 5) -> str:
    if not items:
        return ""
    return f"{len(items)} {what}: {', '.join(items[:most])}" + (", ..." if len(items) > most else "")


class History:
    """The two logs. Append with `sent` and `received` as things happen; `check` whenever nothing moves any more."""

    def __init__(self) -> None:
        self.sends: list[Sent] = []
        self.receipts: list[Received] = []

    def sent(self, id: str, status: Status, *, key: str = "", at: float = 0.0) -> None:
        """Log a send. A message that is sent again (its first answer was ``unknown``) is logged again."""
        self.sends.append(Sent(id, status, key, at))

    def received(
        self, id: str, *, consumer: str = "", started: float = 0.0, ended: float | None = None, count: int = 0
    ) -> None:
        """Log a hand-out."""
        self.receipts.append(Received(id, consumer, started, ended, count))

    def check(self) -> Findings:
        """Compare the logs."""
        return check(self.sends, self.receipts)

    def lines(self) -> Iterator[bytes]:
        """One JSON object per line, for a checker in another process."""
        for event in (*self.sends, *self.receipts):
            yield msgspec.json.encode(event)

    @classmethod
    def load(cls, lines: Iterable[bytes | str]) -> History:
        """Read what `lines` wrote; several processes' lines may be concatenated.

        Raises:
            msgspec.DecodeError: a line that is no event.
        """
        history = cls()
        decoder: msgspec.json.Decoder[Sent | Received] = msgspec.json.Decoder(Sent | Received)
        for line in lines:
            if line.strip():
                event = decoder.decode(line)
                history.sends.append(event) if isinstance(event, Sent) else history.receipts.append(event)
        return history


# A message may be sent several times; the best answer it ever got is what the sender knows of it.
_BEST = {Status.OK: 2, Status.UNKNOWN: 1, Status.REJECTED: 0}


def check(sends: Iterable[Sent], receipts: Iterable[Received]) -> Findings:
    """Find losses, ghosts, repeats, wrong order and overlaps. Receipts are taken in the order given."""
    best: dict[str, Sent] = {}
    for send in sends:
        known = best.get(send.id)
        if known is None:
            best[send.id] = send
        elif _BEST[send.status] > _BEST[known.status]:
            best[send.id] = msgspec.structs.replace(known, status=send.status)
    handed_out = list(receipts)
    arrived = Counter(receipt.id for receipt in handed_out)
    by_key: dict[str, list[Sent]] = defaultdict(list)
    for send in best.values():
        by_key[send.key].append(send)
    unknown = [send.id for send in best.values() if send.status is Status.UNKNOWN]
    key_of: Callable[[str], str | None] = lambda id: best[id].key if id in best else None  # noqa: E731
    return Findings(
        lost=tuple(loss for key, sent in by_key.items() for loss in _losses(key, sent, arrived)),
        ghosts=tuple(id for id in arrived if id not in best or best[id].status is Status.REJECTED),
        duplicates={id: times - 1 for id, times in arrived.items() if times > 1},
        reordered=tuple(_reorderings(by_key, handed_out)),
        overlaps=tuple(_overlaps(handed_out, key_of)),
        unknown_arrived=sum(1 for id in unknown if id in arrived),
        unknown_missing=sum(1 for id in unknown if id not in arrived),
    )


def _losses(key: str, sent: list[Sent], arrived: Counter[str]) -> Iterator[Lost]:
    seen = [index for index, send in enumerate(sent) if send.id in arrived]
    first, last = (seen[0], seen[-1]) if seen else (len(sent), len(sent))
    for index, send in enumerate(sent):
        if send.status is Status.OK and send.id not in arrived:
            yield Lost(send.id, key, "prefix" if index < first else "postfix" if index > last else "middle")


def _reorderings(by_key: dict[str, list[Sent]], receipts: list[Received]) -> Iterator[Reordered]:
    """Each message that was first seen after a later one of its key, with the latest one that overtook it."""
    place = {send.id: (key, index) for key, sent in by_key.items() for index, send in enumerate(sent)}
    newest: dict[str, int] = {}
    seen: set[str] = set()
    for receipt in receipts:
        if receipt.id in seen or receipt.id not in place:
            continue
        seen.add(receipt.id)
        key, index = place[receipt.id]
        if index < newest.get(key, -1):
            yield Reordered(key, receipt.id, by_key[key][newest[key]].id)
        else:
            newest[key] = index


def _overlaps(receipts: list[Received], key_of: Callable[[str], str | None]) -> Iterator[Overlap]:
    running: dict[str, list[Received]] = defaultdict(list)
    for receipt in sorted(receipts, key=lambda each: each.started):
        key = key_of(receipt.id)
        if not key or receipt.ended is None:
            continue
        running[key] = [other for other in running[key] if other.ended is not None and other.ended > receipt.started]
        for other in running[key]:
            yield Overlap(key, other.id, receipt.id)
        running[key].append(receipt)
