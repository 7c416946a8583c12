"""What goes into a store and what comes out of it: claims, leases, results, counts."""

from __future__ import annotations

import enum
import secrets
from urllib.parse import quote

import msgspec

from atleastonce.contract.outcomes import Code, Fault, Outcome, Scope, rejected
from atleastonce.errors import ConfigurationError

MAX_SCOPE = 512
"""Bytes of a scope. With `MAX_ID`, what every store can index: MySQL takes 3072 bytes in one key, DynamoDB 2048."""
MAX_ID = 512
"""Bytes of an id in UTF-8. A longer key is refused, never cut: two keys cut alike would be one message."""
MAX_FINGERPRINT = 64
"""Bytes: a SHA-512 fits."""
MAX_RESULT = 64 * 1024
"""Bytes of a stored result. Larger ones belong into a store for large things, with a reference to them here."""
TOKEN = 16
"""Bytes of a token: 128 random bits, so that nobody can hold a lease by guessing."""
LONGEST = 10 * 365 * 86_400.0
"""Seconds: the longest lease or time to live."""
WEEK = 7 * 86_400.0

LOST = rejected(Code.STALE, "the lease is no longer this token's: it ended and was taken over, or the record is gone")
"""The outcome of whoever holds no lease (any more). The effect may be somebody else's now: discard, do not settle."""


def scope_key(service: str, group: str, handler: str) -> str:
    """The scope of one handler's claims: two handlers of one message never share a claim.

    Raises:
        ConfigurationError: a part is empty, or all together are longer than `MAX_SCOPE` bytes.
    """
    for name, part in (("service", service), ("group", group), ("handler", handler)):
        if not part:
            raise ConfigurationError(f"the {name} of an idempotency scope is empty; give it a name")
    key = "/".join(quote(part, safe=" .-_~<>:") for part in (service, group, handler))
    if len(key) > MAX_SCOPE:
        raise ConfigurationError(
            f'the idempotency scope "{key[:60]}..." is longer than {MAX_SCOPE} bytes; shorten a name'
        )
    return key


def new_token() -> bytes:
    """128 random bits."""
    return secrets.token_bytes(TOKEN)


class Status(enum.Enum):
    """How a claim ended."""

    NEW = "new"
    """Ours: nobody has begun it, or whoever had gave it back. Run the handler."""
    RECLAIMED = "reclaimed"
    """Ours, *in doubt*: an earlier holder's lease ended without a word, so the effect may have happened."""
    DONE = "done"
    """Completed before; `Claim.result` is what it gave. Do not run the handler; settle."""
    BUSY = "busy"
    """Somebody holds it for `Claim.retry_after` more seconds. Neither run nor acknowledge; burns no attempt."""
    MISMATCH = "mismatch"
    """This id is known with another fingerprint: a different message under a used id. Park it, never run it."""
    UNKNOWN = "unknown"
    """The store did not answer: it may be ours. Claim again with the *same token*, which finds what was granted."""
    REJECTED = "rejected"
    """This request can never be granted: `Claim.fault` says why (an id too long, with NUL, not text...)."""


class ClaimRequest(msgspec.Struct, frozen=True):
    """One message that wants to be handled once.

    Attributes:
        scope: of its handler, from `scope_key`.
        id: the message's id or natural key: 1 to `MAX_ID` bytes of UTF-8 without NUL.
        fingerprint: of what the message says, at most `MAX_FINGERPRINT` bytes; compared in every branch. Empty where
            there is nothing to compare.
        lease: seconds that nobody else gets it. Shorter: a pause of the process lets another run it too. Longer: after a
            crash it waits as long.
        ttl: seconds that an unfinished record is remembered after its lease has ended. Too short, and a crash is
            forgotten: the next claim is then *new* where it should be *reclaimed*.
        token: who claims. A repeated request with the same token gets the same grant again.
    """

    scope: str
    id: str
    fingerprint: bytes = b""
    lease: float = 30.0
    ttl: float = WEEK
    token: bytes = msgspec.field(default_factory=new_token)


class Lease(msgspec.Struct, frozen=True):
    """The right to work on one message: whoever knows the token has it."""

    scope: str
    id: str
    token: bytes

    def __repr__(self) -> str:
        return f"Lease(scope={self.scope!r}, id={self.id!r}, token=***)"


class Completion(msgspec.Struct, frozen=True):
    """The end of a handler, to be remembered.

    Attributes:
        lease: by which it ran.
        result: at most `MAX_RESULT` bytes, handed to duplicates as they are.
        ttl: seconds for which it is remembered, from now. Shorter than the last legal redelivery (retry chain, time in the
            DLQ, redrive), and that redelivery runs the handler again.
    """

    lease: Lease
    result: bytes = b""
    ttl: float = WEEK


class Claim(msgspec.Struct, frozen=True):
    """The answer to a `ClaimRequest`.

    Attributes:
        status: which of the following are set.
        lease: ``NEW`` and ``RECLAIMED``: to extend, complete and release with.
        fence: ``NEW`` and ``RECLAIMED``: rises with every grant of this id, also after its record was purged or lost:
            it is at least the store's clock in microseconds. Write it beside the effect (``WHERE fence < :fence``), and a
            holder that was overtaken cannot overwrite its successor. Fits in 53 bits.
        attempts: ``NEW`` and ``RECLAIMED``: how many times it was granted, this one included, since it was last forgotten.
        result: ``DONE``.
        retry_after: ``BUSY``: seconds until the lease ends, by the store's clock.
        fault: ``UNKNOWN`` and ``REJECTED``.
    """

    status: Status
    lease: Lease | None = None
    fence: int = 0
    attempts: int = 0
    result: bytes = b""
    retry_after: float = 0.0
    fault: Fault | None = None

    @property
    def granted(self) -> bool:
        """Whether the handler may run."""
        return self.lease is not None


MISMATCH = Claim(Status.MISMATCH)


class Count(msgspec.Struct, frozen=True):
    """The size and age of one table. None is unknown, never zero.

    Attributes:
        rows: how many; an estimate where ``detail`` says so.
        oldest: seconds since the record that expires first was made: far above the ttl means that nobody purges.
        detail: why something is not known, or how exact it is.
    """

    rows: int | None = None
    oldest: float | None = None
    detail: str = ""


class Stats(msgspec.Struct, frozen=True):
    """What a store holds: records of leases, and rows of the inbox where it has one."""

    leases: Count
    inbox: Count | None = None


class Entry(enum.Enum):
    """What the inbox says of one id inside a transaction."""

    NEW = "new"
    """Recorded now, and for good if the transaction commits."""
    SEEN = "seen"
    """An earlier transaction did it, or an earlier item of this list."""
    MISMATCH = "mismatch"
    """Seen with another fingerprint."""


def flaw(scope: object, id: object, fingerprint: object) -> str | None:
    """What is wrong with a key, None if nothing."""
    if not isinstance(scope, str) or not scope or len(scope) > MAX_SCOPE or not scope.isascii() or "\0" in scope:
        return "the scope is not one that scope_key() made"
    if not isinstance(id, str):
        return f"the idempotency key is a {type(id).__name__}; make it text"
    if not id:
        return "the idempotency key is empty"
    if "\0" in id:
        return "the idempotency key holds a NUL, which PostgreSQL cannot store"
    try:
        length = len(id) if id.isascii() else len(id.encode())
    except UnicodeEncodeError:
        return "the idempotency key is no Unicode text: it holds half of a surrogate pair"
    if length > MAX_ID:
        return f"the idempotency key has {length} bytes and may have {MAX_ID}; use a digest of it"
    if not isinstance(fingerprint, bytes) or len(fingerprint) > MAX_FINGERPRINT:
        return f"the fingerprint must be at most {MAX_FINGERPRINT} bytes"
    return None


def token_flaw(value: object) -> str | None:
    """What is wrong with a token."""
    good = isinstance(value, bytes) and len(value) == TOKEN
    return None if good else f"a token has {TOKEN} bytes; make it with new_token()"


def bytes_flaw(name: str, value: object) -> str | None:
    """What is wrong with what should be bytes."""
    return None if isinstance(value, bytes) else f"the {name} is a {type(value).__name__}; encode it to bytes"


def span_flaw(name: str, value: object) -> str | None:
    """What is wrong with a number of seconds."""
    if isinstance(value, int | float) and 0.001 <= value <= LONGEST:
        return None
    return f"{name}={value!r} is out of range; give seconds from 0.001 to ten years"


def refused(text: str, code: Code = Code.INVALID) -> Outcome:
    """An item that can never succeed."""
    return rejected(code, text, scope=Scope.MESSAGE)
