"""What makes two messages the same one: their key, and the fingerprint that tells a duplicate from a stranger of that key."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, get_type_hints

import msgspec

from atleastonce import wire
from atleastonce.errors import ConfigurationError, InvalidIdempotencyKey, ends_process
from atleastonce.message import Message
from atleastonce.stores.records import flaw

Key: TypeAlias = str | Sequence[str] | Callable[..., Any] | None
"""None: the message's id. A field's name, several, or a callable of the payload, or of the payload and the `Message`."""

_MISSING = object()
_PLAIN = (str, int)
# Begins the text of a number: a control character, which no key of people's begins with.
_NUMBER = "\x01"


def check_key(key: object, name: str) -> None:
    """Raises ConfigurationError: ``key`` is none."""
    names = key if isinstance(key, list | tuple) else (key,)
    if key is None or callable(key) or (names and all(isinstance(each, str) and each for each in names)):
        return
    raise ConfigurationError(
        f'{name} key={key!r}: give a field\'s name, like key="order_id", several of them, or a callable of the payload'
    )


class KeyReader:
    """Reads the key of one handler's messages.

    Args:
        key: as the user wrote it.
        handler: for errors.
        payload_type: of the handler.

    Attributes:
        needs_payload: whether the body has to be decoded for it.

    Raises:
        ConfigurationError: the payload's type has no such field, or the callable takes neither one nor two arguments.
    """

    def __init__(self, key: Key, handler: str, payload_type: Any) -> None:
        self.needs_payload = key is not None
        self._names: tuple[str, ...] = ()
        self._call: Callable[..., Any] | None = None
        self._wants_message = False
        if callable(key):
            self._call = key
            self._wants_message = arguments_of(key, handler, "idempotency") == 2
        elif key is not None:
            self._names = (key,) if isinstance(key, str) else tuple(key)
            check_fields(self._names, handler, payload_type, "idempotency")

    def __call__(self, payload: Any, message: Message) -> str:
        """The key.

        Raises:
            InvalidIdempotencyKey: it is missing, NULL, of a type that is no key, or longer than a store takes.
        """
        if not self.needs_payload:
            found = message.id
        elif self._call is not None:
            value = self._called(payload, message)
            found = _single(value, "its key function's result") if not isinstance(value, tuple) else _joined(value)
        elif len(self._names) == 1:
            found = _single(_field(payload, self._names[0]), f'its key field "{self._names[0]}"')
        else:
            found = _joined([_field(payload, name) for name in self._names], self._names)
        if wrong := flaw("x", found, b""):
            raise InvalidIdempotencyKey(wrong)
        return found

    def _called(self, payload: Any, message: Message) -> Any:
        assert self._call is not None  # noqa: S101 - asked only then
        try:
            return self._call(payload, message) if self._wants_message else self._call(payload)
        except BaseException as error:
            if ends_process(error):
                raise
            raise InvalidIdempotencyKey(f"its key function raised {type(error).__name__}: {error}") from error


def fingerprint(message: Message) -> bytes:
    """The SHA-256 of the body. A dead letter whose body a person has changed for its redrive is still that message: what it
    was before says so."""
    before = message.headers.get(wire.EDITED) if wire.EDITED in message.headers else None
    if before is not None and len(before) == 64:
        try:
            return bytes.fromhex(before)
        except ValueError:
            pass  # anybody may have written that header
    return hashlib.sha256(message.body).digest()


def external_key(scope: str, key: str) -> str:
    """For systems that know idempotency keys: 32 hexadecimal digits, the same for each run of this message by this handler, and
    of no other one."""
    return hashlib.sha256(f"{scope}\0{key}".encode()).hexdigest()[:32]


def _field(payload: Any, name: str) -> Any:
    found = payload.get(name, _MISSING) if isinstance(payload, Mapping) else getattr(payload, name, _MISSING)
    if found is _MISSING or found is msgspec.UNSET:
        raise InvalidIdempotencyKey(f'its key field "{name}" is missing')
    return found


def _plain(value: Any, what: str) -> str | int:
    """``value`` as JSON has it: text, or a whole number."""
    if value is None:
        raise InvalidIdempotencyKey(f"{what} is null")
    if isinstance(value, bool) or not isinstance(value, _PLAIN):
        # UUIDs, dates, decimals and enums as they travel in JSON.
        try:
            plain = msgspec.to_builtins(value)
        except TypeError:
            plain = value
        if isinstance(plain, bool) or not isinstance(plain, _PLAIN):
            raise InvalidIdempotencyKey(f"{what} is a {type(value).__name__}; a key is text or a whole number")
        value = plain
    return str(value) if isinstance(value, str) else int(value)


def _single(value: Any, what: str) -> str:
    """One value as text, so that no two values make the same one: a number is not the text of its digits."""
    plain = _plain(value, what)
    if isinstance(plain, int):
        return _NUMBER + _digits(plain, what)
    # A text stays as it is, for its claims were made by it; but for one that looks like a number of ours.
    return f"{_NUMBER}{plain}" if plain.startswith(_NUMBER) else plain


def _joined(values: Sequence[Any], names: Sequence[str] = ()) -> str:
    """Several values as one text, a list in JSON, so that no two lists make the same one: ``[1]`` is not ``["1"]``."""
    whats = [f'its key field "{name}"' for name in names] or ["a part of its key"] * len(values)
    parts = []
    for value, what in zip(values, whats, strict=True):
        plain = _plain(value, what)
        parts.append(_digits(plain, what) if isinstance(plain, int) else msgspec.json.encode(plain).decode())
    return f"[{','.join(parts)}]"


def _digits(value: int, what: str) -> str:
    try:
        return f"{value:d}"
    except ValueError:  # Python writes no number of more than 4300 digits
        raise InvalidIdempotencyKey(f"{what} is a number of too many digits; use a digest of it") from None


def arguments_of(key: Callable[..., Any], handler: str, what: str) -> int:
    """How many arguments the ``what`` key function of ``handler`` takes: the payload, or the payload and the `Message`.

    Raises:
        ConfigurationError: neither one nor two.
    """
    try:
        parameters = inspect.signature(key).parameters.values()
    except (TypeError, ValueError):
        return 1  # a built-in that does not say
    wanted = [
        each
        for each in parameters
        if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(wanted) in (1, 2) and not inspect.iscoroutinefunction(key):
        return len(wanted)
    raise ConfigurationError(
        f"{handler}: the {what} key function must be a def of the payload, or of the payload and the Message"
    )


def check_fields(names: Sequence[str], handler: str, payload_type: Any, what: str) -> bool:
    """Whether a payload of this type certainly has ``names``; False where that cannot be told. A misspelt field would park every
    message.

    Raises:
        ConfigurationError: names the wrong one, and those that there are.
    """
    known = _fields(payload_type)
    for name in names:
        if known is not None and name not in known:
            raise ConfigurationError(
                f'{handler}: {what} key "{name}" is no field of {getattr(payload_type, "__name__", payload_type)}; '
                f"it has {', '.join(sorted(known)) or 'none'}"
            )
    return known is not None


def _fields(payload_type: Any) -> set[str] | None:
    """The names that a payload of this type certainly has; None where that cannot be told."""
    if isinstance(payload_type, type) and issubclass(payload_type, msgspec.Struct):
        return set(payload_type.__struct_fields__)
    if hasattr(payload_type, "__dataclass_fields__"):
        return set(payload_type.__dataclass_fields__)
    if hasattr(payload_type, "__total__"):  # a TypedDict
        return set(get_type_hints(payload_type))
    if hasattr(payload_type, "model_fields"):  # pydantic
        return set(payload_type.model_fields)
    return None
