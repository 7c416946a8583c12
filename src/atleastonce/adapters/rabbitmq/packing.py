"""Header fields that cannot travel as they are: names the broker acts on, equal names, and their order."""

from __future__ import annotations

from functools import lru_cache
from operator import itemgetter, le
from typing import Final, TypeVar

from atleastonce.message import HeaderValue

T = TypeVar("T")

ORDER: Final = "alo-order"

# The broker reads these from a publish, and sends copies to the queues they name: as a user's field they travel under
# another name.
_PACKED: Final = {"CC": "alo-cc", "BCC": "alo-bcc"}
_UNPACKED: Final = {packed: name for name, packed in _PACKED.items()}

# RabbitMQ 4 keeps one field of each name, the first; earlier ones than the last travel under names of their own.
_EARLIER: Final = "alo-dup-"

_DIGITS: Final = 6  # of a place among the fields of one frame


def packed(names: list[str]) -> list[str]:
    """The names under which fields travel: each is there once, and the last of several equal ones keeps its own."""
    if len(set(names)) < len(names):
        last = {name: place for place, name in enumerate(names)}
        names = [name if last[name] == place else f"{_EARLIER}{place}-{name}" for place, name in enumerate(names)]
    return [_PACKED.get(name, name) for name in names]


@lru_cache(1024)
def unpacked(name: str) -> str:
    """The user's name of a field that came under ``name``."""
    if name.startswith(_EARLIER):
        return name[len(_EARLIER) :].partition("-")[2] or name
    return _UNPACKED.get(name, name)


def order_of(names: list[str]) -> str | None:
    """Where each field belongs, for a table that the broker sorts by name; None where sorting changes nothing."""
    if all(map(le, names, names[1:])):
        return None
    return " ".join(map(str, sorted(range(len(names)), key=names.__getitem__)))


def ordered(items: list[tuple[str, T]], order: HeaderValue) -> list[tuple[str, T]]:
    """``items`` as they were sent; as they are where ``order`` does not fit them."""
    positions = _positions(str(order))
    if positions is None or len(positions) != len(items):
        return items
    restored = items[:]
    for position, item in zip(positions, sorted(items, key=itemgetter(0)), strict=True):
        restored[position] = item
    return restored


@lru_cache(1024)
def _positions(order: str) -> tuple[int, ...] | None:
    """What `order_of` wrote; None if it is none of its."""
    places = order.split()
    if not all(place.isascii() and place.isdigit() and len(place) <= _DIGITS for place in places):
        return None
    positions = tuple(map(int, places))
    return positions if sorted(positions) == list(range(len(positions))) else None
