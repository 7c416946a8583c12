"""What a user writes as ``idempotency=``: where is remembered what was handled, by which key, for how long."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

from atleastonce.durations import Duration, seconds
from atleastonce.errors import ConfigurationError
from atleastonce.patterns.failure import FailurePolicy
from atleastonce.patterns.once.keys import Key, check_key
from atleastonce.stores.contract import LeaseStore, TransactionalStore
from atleastonce.stores.records import LONGEST

Session: TypeAlias = Callable[[], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]

# A lease below this is over before its renewal, at a third of it, has had its round trip on a busy machine.
_SHORTEST_LEASE = 1.0
# How late dead letters are redriven where nobody says, and the broker does not say for how long it keeps them: a weekend.
_REDRIVE = "3d"
# What is remembered where nobody says, even if nothing could come again so late.
_WEEK = 7 * 86_400.0
# Of what a broker keeps, so much is covered where nobody says: dead letters that are kept for longer are for people to look at, and
# rows for each message of so long a time are a decision.
_MOST = 92 * 86_400.0


@dataclass(frozen=True)
class Idempotency:
    """What `Inbox` and `Lease` have in common.

    Args:
        store: remembers what was handled. A service opens it when it starts and closes it when it stops, unless it was open.
        key: what makes two messages the same one. None: the message's id (``alo-id``), which every hop keeps. A field of the
            payload, several fields, or a callable of the payload (and, if it takes two arguments, of the `Message`, for its
            headers). Two handlers never share a claim: the key counts within service, source and handler.
        ttl: how long it is remembered. None: for as long as it may legally come again, as far as the broker tells, and a week at
            least. Too short: a late duplicate runs again; refused at the start if a legal redelivery could be later. Too long: the
            table grows.
        redrive_within: how long after it was first handled a copy of a message may still come from the dead letters; part of
            what ``ttl`` must cover. 0 for handlers whose dead letters are never redriven. None: as long as the broker keeps them,
            and three days where it keeps them for ever.
        compare: whether a message of a known key must have the same body, and is otherwise parked and never run. Off: for
            natural keys whose duplicates differ (a time of sending).
        scope: the handler's name in its claims; default its ``__qualname__``. Give the old name before you rename a
            function: under a new one nothing is remembered.
    """

    store: LeaseStore
    _: KW_ONLY
    key: Key = None
    ttl: Duration | None = None
    redrive_within: Duration | None = None
    compare: bool = True
    scope: str | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(_given(self.store), LeaseStore):
            raise ConfigurationError(f'{name}({self.store!r}): give it a store, like PostgresStore("postgresql://...")')
        check_key(self.key, name)
        if self.ttl is not None and seconds(self.ttl, name=f"{name} ttl", minimum=1.0) > LONGEST:
            raise ConfigurationError(f"{name} ttl={self.ttl!r} is out of range; give one second to ten years")
        if self.redrive_within is not None:
            seconds(self.redrive_within, name=f"{name} redrive_within")

    def remembered(self, said: float, kept: float = 0.0) -> float:
        """For how many seconds a message is remembered.

        Args:
            said: it may come again for so long by what was said of it, see `last_redelivery`.
            kept: and for so long by what its broker keeps.
        """
        return seconds(self.ttl) if self.ttl is not None else max(_WEEK, said, min(kept, _MOST))

    @property
    def redrive_horizon(self) -> float:
        """``redrive_within`` in seconds, said or not."""
        return seconds(_REDRIVE if self.redrive_within is None else self.redrive_within)


@dataclass(frozen=True)
class Inbox(Idempotency):
    """Effects and the memory of them in one database transaction: they happen exactly once in that database.

    The id is inserted in the handler's own transaction (``ctx.tx``), which commits before the message is settled. What the
    handler publishes is a row of the outbox in it.

    Args:
        session: begins the user's own transaction instead of the store's: a callable that gives a context manager, which gives
            what ``ctx.tx`` is to be, commits at its end and rolls back for an exception. SQLAlchemy: ``Session.begin`` of a
            ``sessionmaker`` or ``async_sessionmaker``. It must be the database of ``store``.

    Raises:
        ConfigurationError: a store that has no transactions, a value out of range.
    """

    session: Session | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.store, TransactionalStore):
            raise ConfigurationError(
                f"Inbox({self.store!r}): this store is no database in which a handler's effects could be; use "
                "PostgresStore, MySQLStore or SQLiteStore, or Lease(...) for effects elsewhere"
            )
        if self.session is not None and not callable(_given(self.session)):
            raise ConfigurationError(
                f"Inbox session={self.session!r}: give a callable that begins a transaction, like Session.begin"
            )

    def on_repeat(self) -> str:
        """See `atleastonce.explain.model.Guard`."""
        return (
            "If its transaction had committed, it is a duplicate and its handler does not run; if not, nothing is left of that run "
            "in the database, and its handler runs again: what it did elsewhere it does again."
        )


@dataclass(frozen=True)
class Lease(Idempotency):
    """For effects outside the database (a card gateway, an email): claim, run, complete, settle.

    A duplicate does not run: it waits while the first one is at it, and is settled once that is done. If a process dies
    half way, its lease ends and somebody else runs the handler again, with ``ctx.in_doubt`` set: give ``ctx.idempotency_key`` to
    the system that has the effect, or write ``ctx.fence`` beside it.

    Args:
        lease: how long a claim lasts without being renewed (at a third of it). Shorter: a pause of the process lets another
            one run the same message. Longer: after a crash it waits as long.

    Raises:
        ConfigurationError: no store, a value out of range.
    """

    lease: Duration = "30s"

    def __post_init__(self) -> None:
        super().__post_init__()
        if seconds(self.lease, name="Lease lease", minimum=_SHORTEST_LEASE) > self.remembered(0.0):
            shown = "a week, for which it remembers" if self.ttl is None else f"ttl={self.ttl!r}"
            raise ConfigurationError(f"Lease lease={self.lease!r} is longer than {shown}; make the ttl longer")

    def on_repeat(self) -> str:
        """See `atleastonce.explain.model.Guard`."""
        return (
            "If its handler's end had been written down, it is a duplicate and its handler does not run; if not, its handler runs "
            "again once the lease has ended, with ctx.in_doubt set."
        )


def last_redelivery(policy: FailurePolicy, redrive_within: float, *, dead_letter: bool) -> float:
    """The latest moment, in seconds after a message was handled, at which a copy of it may legally come again: through the
    whole chain, into the dead letters, and back from there."""
    waits = sum(policy.delays) + sum(policy.drained)
    if policy.give_up_after is not None:
        waits = min(waits, seconds(policy.give_up_after) + max(policy.drained, default=0.0))
    return waits + (redrive_within if dead_letter else 0.0)


def _given(value: object) -> object:
    """What was really given, whatever its annotation says."""
    return value
