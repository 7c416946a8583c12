"""THE store contract: what every store of idempotency implements, and all that the patterns above know of a database.

A store remembers which messages were handled, so that a duplicate has no second effect. There are two ways, and one object
may offer both:

    **Leases** (`LeaseStore`), for effects outside the database: claim, run the handler, complete, settle. A claim is atomic
    and says who holds it (a random token, never a host name), for how long, and with which fence.

    **Inbox** (`TransactionalStore`), for effects inside it: the id is inserted in the handler's own transaction, which makes
    the effect happen exactly once.

Rules that hold for every method of every store
    **One round trip for a list.** `claim`, `extend`, `complete`, `release` take lists and ask the store once (per thousand
    items, and on DynamoDB, which has no such command, once per item, in parallel). An empty list asks nothing.

    **Per item.** They answer each item, in order, and raise only `Closed`. One bad item costs only itself.

    **Unknown is an answer.** If the store did not answer, every item of the call is unknown, with the `Fault`. All four may
    be repeated with the same token any number of times: what was done is recognised as one's own, and answered as the first
    time. Never take unknown for done (loses the effect), nor for lost (does it twice).

    **The store's clock.** No time of a client enters a decision; a client whose clock is ten minutes wrong claims,
    extends and is overtaken like any other. (DynamoDB has no clock to ask in a condition: see its page.)

    **The token decides.** Whoever was overtaken can neither extend, complete nor release, for ever. Whoever is late and
    was *not* overtaken still can: nobody else has begun, and the effect that was had should be written down.

    **Forgetting.** Nothing is forgotten before its ``expires``: of a completed record, ``ttl`` after completion; of an
    unfinished one, ``ttl`` after its lease ended. What has expired counts as absent at once; `purge` only gives the room back.

    **Passing trouble is tried again in place.** Serialization failures, deadlocks, a lock that was waited for too long and a
    connection that had gone stale are tried again (`TRIES` times, with growing, random pauses) before they become unknown.

    **Secrets.** No repr, error or log holds a password, a token or a result.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, ClassVar, Self, TypeVar

from atleastonce.contract.outcomes import Code, Fault, Outcome
from atleastonce.contract.outcomes import Status as Ended
from atleastonce.errors import Closed, ConfigurationError
from atleastonce.stores import batches
from atleastonce.stores.records import WEEK, Claim, ClaimRequest, Completion, Entry, Lease, Stats, Status

SAVEPOINT = "alo_claim"
"""Set by `TransactionalStore.claim_in`, so that its transaction can be told from any other."""

TRIES = 4
"""How often one call is tried. Fewer: a busy database's deadlocks reach the caller. More: a dead one is noticed later."""

_T = TypeVar("_T")
_R = TypeVar("_R")
_F = TypeVar("_F")


class LeaseStore(ABC):
    """Claims with leases. Call it on one running event loop; calls may overlap."""

    scheme: ClassVar[str]
    """The URL scheme, which is also the store's name in reports."""

    def __init__(self) -> None:
        self._open = False

    # ------------------------------------------------------------------------------------------------------- lifecycle

    async def open(self) -> None:
        """Connect and look at the schema. Idempotent.

        Raises:
            StoreUnavailable: it does not answer. May be called again.
            PermissionDenied: it refuses the credentials.
            ConfigurationError: its schema is missing or of another version, or its settings break the promise (a
                Redis that evicts keys); the text says what to change.
            MissingExtra: the client library is not installed.
        """
        if not self._open:
            await self._connect()
            self._open = True

    @property
    def is_open(self) -> bool:
        """Whether it is between `open` and `close`."""
        return self._open

    async def close(self) -> None:
        """Give back connections. Idempotent; never raises for a store that is gone. Leases run on, in the store."""
        if self._open:
            self._open = False
            await self._disconnect()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @abstractmethod
    async def init(self) -> None:
        """Create the schema where it is missing. Idempotent, safe when many do it at once, never deletes or alters.

        Needs no `open`. The same as SQL, for one's own migrations: the store's ``schema()`` where it has one.

        Raises:
            As `open`.
        """

    # ---------------------------------------------------------------------------------------------------------- leases

    async def claim(self, requests: Sequence[ClaimRequest]) -> list[Claim]:
        """Ask for each message; at most one holder of an id at a time, whoever asks from wherever.

        The same id twice in one list: the first asks, the others are answered as if they had come after it.
        """
        return await batches.claims(requests, self._sending(self._claim, _no_claim))

    async def extend(self, leases: Sequence[Lease], seconds: float) -> list[Outcome]:
        """Let these last ``seconds`` from now: ``ok``, or `LOST`. Extend at a third of the lease, so that two may fail."""
        return await batches.extensions(
            leases, seconds, self._sending(lambda held: self._extend(held, seconds), _no_outcome)
        )

    async def complete(self, completions: Sequence[Completion]) -> list[Outcome]:
        """Remember that it is done, and its result: ``ok``, `LOST`, or ``rejected`` for a result that is too large.

        Completed twice with the same token: ``ok``, and the first result stays.
        """
        return await batches.completions(completions, self._sending(self._complete, _no_outcome))

    async def release(self, leases: Sequence[Lease]) -> list[Outcome]:
        """Give back what was not done: the next claim is granted at once. Attempts, fence and doubt are kept.

        Not for a handler that was cancelled or killed half way: let the lease end, so that the next claim is *reclaimed*.
        """
        return await batches.releases(leases, self._sending(self._release, _no_outcome))

    # ---------------------------------------------------------------------------------------------------- housekeeping

    @abstractmethod
    async def purge(self, limit: int = 1000) -> int:
        """Remove at most ``limit`` expired records of each table, and return how many; call until it returns 0.

        Larger: fewer round trips, and locks that are held longer. Safe when many do it at once. 0 where the store
        forgets by itself.

        Raises:
            StoreUnavailable: as named.
        """

    @abstractmethod
    async def stats(self) -> Stats:
        """Size and age. What cannot be found out is None, never 0.

        Raises:
            StoreUnavailable: as named.
        """

    @abstractmethod
    def classify(self, error: BaseException) -> Fault:
        """The fault behind a client library's exception.

        ``UNAVAILABLE``, ``TIMEOUT``: not reachable now. ``OVERLOADED``: full. ``CONFLICT``, retryable: another
        transaction was in the way, try again. ``INVALID``, ``NOT_FOUND``, ``PERMISSION``: misconfigured, people have to
        act. `Code.INTERNAL`, not retryable, for what is not known.
        """

    # ----------------------------------------------------------------------- for whoever implements one: distinct, valid items

    @abstractmethod
    async def _connect(self) -> None: ...

    @abstractmethod
    async def _disconnect(self) -> None: ...

    @abstractmethod
    async def _claim(self, requests: Sequence[ClaimRequest]) -> Sequence[Claim]: ...

    @abstractmethod
    async def _extend(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool | Outcome]: ...

    @abstractmethod
    async def _complete(self, completions: Sequence[Completion]) -> Sequence[bool | Outcome]: ...

    @abstractmethod
    async def _release(self, leases: Sequence[Lease]) -> Sequence[bool | Outcome]: ...

    def _check_open(self) -> None:
        if not self._open:
            raise Closed(f"this {self.scheme} store is not open; call open() first, or use it with `async with`")

    def _sending(
        self, call: Callable[[Sequence[_T]], Awaitable[Sequence[_R]]], failed: Callable[[Fault], _F]
    ) -> Callable[[Sequence[_T]], Awaitable[Sequence[_R | _F]]]:
        """``call``, tried again where that helps; ``failed`` for each item where it does not."""
        self._check_open()

        async def send(items: Sequence[_T]) -> Sequence[_R | _F]:
            try:
                return await self._persist(lambda: call(items))
            except Closed:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a client library makes of a failing store
                fault = self.classify(error)
                return [failed(fault)] * len(items)

        return send

    async def _persist(self, call: Callable[[], Awaitable[_R]]) -> _R:
        """``call``, repeated while its errors are conflicts, and once for a connection that had ended unnoticed."""
        for tried in range(1, TRIES):
            try:
                return await call()
            except Exception as error:
                fault = self.classify(error)
                passing = fault.code is Code.CONFLICT and fault.retryable
                stale = fault.code is Code.UNAVAILABLE and fault.retryable and tried == 1
                if not (passing or stale):
                    raise
                await asyncio.sleep(random.uniform(0, 0.01 * 4**tried) if passing else 0)
        return await call()


class TransactionalStore(LeaseStore):
    """A store that is a database, so that effects and the memory of them can be one transaction."""

    @property
    def patience(self) -> float | None:
        """Seconds for which one answer of its server is waited for; None: it has no server that could be silent."""
        return None

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """A transaction on a connection of the store's own: commits at the end of the block, undone by an exception.

        Gives the driver's own object: a ``psycopg.AsyncConnection``, a ``sqlite3.Connection``. Neither commit nor roll
        back inside the block.

        Raises:
            StoreUnavailable: as named. What a commit raises is raised as it is: it may have happened (the reply was
            lost), so do not settle; the redelivery finds the row.
        """

    def transaction_sync(self) -> AbstractContextManager[Any]:
        """As `transaction`, for threads without a loop: each method of what it gives blocks. Safe to call from many threads.
        Needs no `open`; the tables must be there.

        Raises:
            ConfigurationError: this store has none.
            StoreUnavailable: as `transaction`.
        """
        raise ConfigurationError(
            f"the {self.scheme} store has no blocking transactions; make the handler async def, or give the inbox a session"
        )

    @abstractmethod
    async def claim_in(
        self, tx: Any, scope: str, ids: Sequence[str], fingerprints: Sequence[bytes], *, ttl: float = WEEK
    ) -> list[Entry]:
        """Record these ids in the transaction ``tx``, which may be the user's own, and say which are new.

        One statement; a second one only if some are not new. An id that another open transaction has recorded is waited
        for: it is seen if that one commits, new if it rolls back. The wait ends with the database's lock timeout. A row
        counts until it is purged, at least ``ttl`` seconds. Leaves the savepoint `SAVEPOINT` for `holds_in`.

        Args:
            tx: the driver's connection, inside a transaction.
            scope: from `scope_key`.
            ids: of the messages; one that comes twice is new once.
            fingerprints: one for each id.
            ttl: seconds.

        Raises:
            InvalidMessage: an id or fingerprint that no store takes, or an id that this database's encoding cannot hold; nothing
                was recorded, and the transaction may be of no more use.
            ConfigurationError: ``tx`` is no transaction.
            ConfigurationError, StoreUnavailable: what the database answered is not understood. An id is `Entry.SEEN` only if the
                database said so.
            The driver's own errors: a serialization failure or deadlock undoes the whole transaction, so it is not tried
            again here. `classify` tells them; whoever began the transaction begins it again.
        """

    def lost_a_race(self, error: BaseException) -> bool:
        """Whether ``error``, a driver's, says that the database undid a transaction for another one's sake, so that it is begun
        again: a serialization failure or a deadlock. Not that a lock was waited for too long."""
        return self.classify(error).code is Code.CONFLICT

    async def holds_in(self, tx: Any, *, failed: bool = False) -> bool:
        """Whether ``tx`` is still the transaction of `claim_in`. Asked once, before it is committed or rolled back.

        It is not if the handler has ended it, even if it has begun another one, or if the database has undone it: MySQL does
        that in a deadlock, and then answers ``COMMIT`` as if nothing had happened. The savepoint of `claim_in` tells: no other
        transaction has it.

        Args:
            tx: as given to `claim_in`.
            failed: the handler raised. Then what came after `claim_in` is undone by the question, which so is answered in a
                transaction that a failed statement has spoilt.

        Raises:
            The driver's own errors: the connection was lost.
        """
        return True


def _no_claim(fault: Fault) -> Claim:
    return Claim(Status.UNKNOWN, fault=fault)


def _no_outcome(fault: Fault) -> Outcome:
    return Outcome(Ended.UNKNOWN, fault)
