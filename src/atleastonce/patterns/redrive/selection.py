"""Which dead letters are meant: the filters of all commands, checked before anything is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from atleastonce.durations import Duration, format_duration, seconds
from atleastonce.errors import ConfigurationError

if TYPE_CHECKING:
    from atleastonce.patterns.redrive.letters import Letter


class Selection:
    """A choice among dead letters: those that fit every condition. Without conditions it is all of them.

    Args:
        error_type: one of these: the exception's name, with or without its package.
        fingerprint: one of these; the beginning is enough.
        id: one of these messages.
        older_than, newer_than: by the time of the last failure (or, where nobody wrote that down, of the publish); what has
            no time is neither.
        headers: each of these fields has this value.
        where: a JMESPath expression over the body, such as "total > `100`": it fits where the result is neither null, false
            nor empty. A body that is no JSON never fits.
        now: the clock.

    Raises:
        ConfigurationError: a duration or an expression that cannot be read; nothing was asked of any broker.
    """

    def __init__(
        self,
        *,
        error_type: Iterable[str] = (),
        fingerprint: Iterable[str] = (),
        id: Iterable[str] = (),
        older_than: Duration | None = None,
        newer_than: Duration | None = None,
        headers: Iterable[tuple[str, str]] = (),
        where: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.ids = _texts(id, "id")
        self._error_types = _texts(error_type, "error_type")
        self._fingerprints = tuple(_texts(fingerprint, "fingerprint"))
        self._headers = tuple(headers)
        self._begun = now()
        self._older = None if older_than is None else seconds(older_than, name="older_than")
        self._newer = None if newer_than is None else seconds(newer_than, name="newer_than")
        if self._older is not None and self._newer is not None and self._older >= self._newer:
            raise ConfigurationError(
                f"older than {format_duration(self._older)} and newer than {format_duration(self._newer)} is never; "
                "swap the two"
            )
        self._where = None if where is None else _compiled(where)
        self._tests: list[Callable[[Letter], bool]] = []
        if self.ids:
            self._tests.append(lambda letter: letter.id in self.ids)
        if self._headers:
            self._tests.append(self._has_headers)
        if self._error_types:
            self._tests.append(self._has_type)
        if self._fingerprints:
            self._tests.append(lambda letter: letter.obituary.fingerprint.startswith(self._fingerprints))
        if self._older is not None or self._newer is not None:
            self._tests.append(self._in_time)
        if self._where is not None:
            self._tests.append(self._fits)

    def __call__(self, letter: Letter) -> bool:
        """Whether ``letter`` is meant."""
        return all(test(letter) for test in self._tests)

    def __bool__(self) -> bool:
        """Whether there is any condition."""
        return bool(self._tests)

    def _has_type(self, letter: Letter) -> bool:
        name = letter.obituary.error_type
        return name in self._error_types or name.rpartition(".")[2] in self._error_types

    def _has_headers(self, letter: Letter) -> bool:
        headers = letter.message.headers
        return all(
            any(value == (found.decode("utf-8", "replace") if isinstance(found, bytes) else found) for found in values)
            for value, values in ((value, headers.get_all(name)) for name, value in self._headers)
        )

    def _in_time(self, letter: Letter) -> bool:
        died = letter.died
        if died is None:
            return False
        age = self._begun - died
        return (self._older is None or age >= self._older) and (self._newer is None or age < self._newer)

    def _fits(self, letter: Letter) -> bool:
        assert self._where is not None  # noqa: S101 - only then is it called
        return self._where(letter)


def _texts(given: Iterable[str], name: str) -> frozenset[str]:
    found = frozenset((given,) if isinstance(given, str) else given)
    if "" in found:
        raise ConfigurationError(f"{name}: an empty text selects nothing; leave it away")
    return found


def _compiled(expression: str) -> Callable[[Letter], bool]:
    import jmespath  # only who asks for it needs it

    from atleastonce.patterns.redrive.letters import NO_JSON

    try:
        compiled = jmespath.compile(expression)
        compiled.search({})  # unknown functions and wrong numbers of arguments are found when it runs
    except (jmespath.exceptions.ArityError, jmespath.exceptions.UnknownFunctionError) as error:
        raise ConfigurationError(f"where {expression!r}: {_first_line(error)}") from None
    except jmespath.exceptions.JMESPathTypeError:
        pass  # of this empty body, which says nothing
    except jmespath.exceptions.JMESPathError as error:
        raise ConfigurationError(
            f"where {expression!r} is no JMESPath: {_first_line(error)}; numbers to compare with stand in backticks and "
            "texts in single quotes: total > `100` && status == 'open'"
        ) from None

    def fits(letter: Letter) -> bool:
        body: Any = letter.json
        if body is NO_JSON:
            return False
        try:
            found = compiled.search(body)
        except jmespath.exceptions.JMESPathError:  # this body is not made as the expression takes it to be
            return False
        # JMESPath's own idea of false: 0 is none of them.
        return found is not None and found is not False and not (isinstance(found, str | list | dict) and not found)

    return fits


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(":")
