"""Order per key: by what messages are kept in line, and what becomes of a line whose head was given up.

Messages of one key run one at a time, in the order in which the broker hands them out; keys run in parallel. A message that
fails waits *in its line*: in-place repetitions and the delays of the chain alike, so that nothing of its key goes by. Other
keys do not wait for it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

import msgspec

from atleastonce.contract import Delivery
from atleastonce.errors import ConfigurationError, DecodeError, InvalidOrderKey, ends_process
from atleastonce.patterns.once.keys import arguments_of, check_fields

log = logging.getLogger("atleastonce")

By: TypeAlias = str | Sequence[str] | Callable[..., Any] | None
"""None: the message's key. A field's name, several, or a callable of the payload, or of the payload and the `Message`."""

KeyOf: TypeAlias = Callable[[Delivery], Hashable | None]
"""Says by what a delivery is kept in line; None for by nothing."""

# How many parked keys a process remembers. Fewer: a flood of them lets the first ones go on. Each costs its key and an id.
_PARKED = 100_000

_PLAIN = (bytes, str, int, float, bool)


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """Order per key, with what ``ordered=True`` or ``ordered="customer_id"`` leave at their defaults.

    Args:
        by: what messages are kept in line by. None: the message key. The name of a field of the payload, several names, or a
            quick ``def`` of the payload (or of the payload and the `Message`), which is called on the event loop.
            Without a key (None, an absent message key) a message is in line with no other.
        park: what happens to the rest of a line when its head is given up. False: it goes on without it. True: later messages
            of that key follow it into the dead letters (stage ``parked``), until that message was redriven and handled, the
            channel was resumed by hand, or the process has ended.

    Raises:
        ConfigurationError: ``by`` is no key.
    """

    by: By = None
    park: bool = False

    def __post_init__(self) -> None:
        names = self.by if isinstance(self.by, list | tuple) else (self.by,)
        if self.by is None or callable(self.by) or (names and all(isinstance(each, str) and each for each in names)):
            return
        raise ConfigurationError(
            f'ordered={self.by!r}: give True for the message key, a field\'s name, like "customer_id", several of them, or a '
            "callable of the payload"
        )


Order: TypeAlias = bool | str | Sequence[str] | Callable[..., Any] | Ordered
"""What ``ordered=`` takes."""


def read_order(given: Order | None) -> Ordered | None:
    """What a user wrote; None for no order.

    Raises:
        ConfigurationError: it is none.
    """
    if given is None or given is False:
        return None
    if isinstance(given, Ordered):
        return given
    return Ordered(by=None if given is True else given)


class LineReader:
    """Reads by what each delivery of one handler is kept in line.

    Args:
        order: as the user wrote it.
        handler: for errors.
        payload_type: of the handler.
        decode: a body to that type.

    Raises:
        ConfigurationError: the payload's type has no such field, or the callable takes neither one nor two arguments.
    """

    def __init__(self, order: Ordered, handler: str, payload_type: Any, decode: Callable[[bytes], Any]) -> None:
        by = order.by
        self._decode = decode
        self._call: Callable[..., Any] | None = None
        self._wants_message = False
        self._names: tuple[str, ...] = ()
        if by is None:
            self.key_of: KeyOf = message_key
        elif callable(by):
            self._call = by
            self._wants_message = arguments_of(by, handler, "order") == 2
            self.key_of = self._called
        else:
            self._names = (by,) if isinstance(by, str) else tuple(by)
            if payload_type in _PLAIN:
                raise ConfigurationError(
                    f'{handler}: ordered="{self._names[0]}" names a field, and its payload is {payload_type.__name__}; give '
                    "True for the message key, or a callable of the payload"
                )
            known = check_fields(self._names, handler, payload_type, "order")
            if len(self._names) > 1:
                self.key_of = self._fields
            elif known and not _is_mapping(payload_type):
                self._get = attrgetter(self._names[0])
                self.key_of = self._attribute
            else:
                self.key_of = self._field

    def _attribute(self, delivery: Delivery) -> Hashable | None:
        found = self._get(self._decode(delivery.body))
        return found if found.__class__ is str or found.__class__ is int else _hashable(_set(found))

    def _field(self, delivery: Delivery) -> Hashable | None:
        return _hashable(_read(self._decode(delivery.body), self._names[0]))

    def _fields(self, delivery: Delivery) -> Hashable | None:
        payload = self._decode(delivery.body)
        return tuple(_hashable(_read(payload, name)) for name in self._names)

    def _called(self, delivery: Delivery) -> Hashable | None:
        call, payload = self._call, self._decode(delivery.body)
        assert call is not None  # noqa: S101 - read only then
        try:
            found = call(payload, delivery.message) if self._wants_message else call(payload)
        except BaseException as error:
            if ends_process(error):
                raise
            raise InvalidOrderKey(f"its order key function raised {type(error).__name__}: {error}") from error
        return _hashable(found)


def message_key(delivery: Delivery) -> bytes | None:
    """The key that a message was published under: a `KeyOf`."""
    return delivery.key


_MISSING = object()


def _read(payload: Any, name: str) -> Any:
    found = payload.get(name, _MISSING) if isinstance(payload, Mapping) else getattr(payload, name, _MISSING)
    if found is _MISSING:
        raise InvalidOrderKey(f'its order key field "{name}" is missing')
    return _set(found)


def _set(value: Any) -> Any:
    return None if value is msgspec.UNSET else value


def _is_mapping(payload_type: Any) -> bool:
    """A `TypedDict` names its fields, and its payloads are dictionaries."""
    return not isinstance(payload_type, type) or hasattr(payload_type, "__total__") or issubclass(payload_type, Mapping)


def _hashable(value: Any) -> Hashable | None:
    """``value``, or where it cannot be a dictionary's key (a list, a map) the text that equal ones share."""
    try:
        hash(value)
    except TypeError:
        try:
            return msgspec.json.encode(value, order="deterministic")
        except (TypeError, ValueError) as error:
            raise InvalidOrderKey(
                f"its order key is a {type(value).__name__}, which no two can share ({error})"
            ) from None
    return value  # type: ignore[no-any-return]


def as_flaw(error: BaseException) -> Exception:
    """What is wrong with a message whose key could not be read: undecodable as such, else the key."""
    if isinstance(error, DecodeError | InvalidOrderKey):
        return error
    return InvalidOrderKey(f"its order key cannot be read: {type(error).__name__}: {error}")


class Parked:
    """The keys whose head was given up and whose later messages follow it, of one consumer in one process."""

    def __init__(self) -> None:
        self._by: OrderedDict[Hashable, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by)

    def park(self, key: Hashable, identity: str) -> None:
        """The message ``identity`` of ``key`` was given up."""
        if key in self._by:
            return  # what followed it there changes nothing
        self._by[key] = identity
        log.warning("key %s is parked: later messages follow %s into the dead letters", shown(key), identity)
        if len(self._by) > _PARKED:
            log.error("key %s is no longer parked: %d others are", shown(self._by.popitem(last=False)[0]), _PARKED)

    def done(self, key: Hashable, identity: str) -> None:
        """The message ``identity`` of ``key`` was handled: if it was the one that parked it, the key goes on."""
        if self._by.get(key) == identity:
            del self._by[key]
            log.info("key %s goes on: %s was handled", shown(key), identity)

    def behind(self, key: Hashable, identity: str) -> str | None:
        """The id of the message that ``identity`` follows into the dead letters; None if it may run."""
        head = self._by.get(key)
        return None if head == identity else head

    def forget(self) -> None:
        """Let every key go on."""
        self._by.clear()


def shown(key: Hashable) -> str:
    """``key`` for logs: on one line, and short."""
    text = repr(key)
    return text if len(text) <= 100 else f"{text[:97]}..."
