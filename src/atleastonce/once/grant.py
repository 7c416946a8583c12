"""The claim of one delivery under a lease: asked for, held, over."""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec

from atleastonce.once.item import Item
from atleastonce.patterns.once.keys import external_key
from atleastonce.stores.records import MAX_RESULT, Claim, ClaimRequest, Lease, Status

log = logging.getLogger("atleastonce")


class Grant:
    """What is known of one delivery's claim.

    Attributes:
        item: the delivery, its key and fingerprint.
        request: as the store is asked; repeated as it is while the answer is unknown.
        lease: None until it is granted.
        fence, in_doubt: of the claim.
        until: when the lease ends, by the clock that this process has for itself (``time.monotonic``), never too late.
        lost: whether somebody has taken over.
        cut: whether a run began and did not end by itself. Its effect may have happened: the lease is left to end.
        doubted: whether such a run was followed by another one under this lease, which then knows no more of it than anybody.
        result: what the handler gave, encoded, once it has succeeded.
        copies: whether what it published has to be confirmed before it is done.
        refused: whether the broker refuses for good something that it published, so that it is not done after all.
        leaving: whether it has its verdict.
        waits: how often it was busy.
    """

    __slots__ = (
        "copies",
        "cut",
        "doubted",
        "fence",
        "in_doubt",
        "item",
        "lease",
        "leaving",
        "lost",
        "payload",
        "refused",
        "request",
        "result",
        "until",
        "waits",
    )

    def __init__(self, item: Item, request: ClaimRequest) -> None:
        self.item = item
        self.request = request
        self.payload = item.payload
        self.lease: Lease | None = None
        self.fence = 0
        self.in_doubt = self.lost = self.cut = self.doubted = self.copies = self.leaving = self.refused = False
        self.result: bytes | None = None
        self.waits = 0
        self.until = 0.0

    @property
    def external_key(self) -> str:
        """See `Context.idempotency_key`."""
        return external_key(self.request.scope, self.request.id)

    @property
    def over(self) -> bool:
        """Whether a run must not begin: somebody has taken over, or may have, since this process was frozen past the lease or
        has not heard from the store for as long."""
        return self.lost or time.monotonic() >= self.until

    def won(self, claim: Claim, until: float) -> None:
        """It is ours."""
        self.until = until
        self.lease, self.fence, self.in_doubt = claim.lease, claim.fence, claim.status is Status.RECLAIMED
        if self.in_doubt:
            log.warning(
                "%s: in doubt: an earlier run of it did not say how it ended, and its effect may have happened; attempt %d begins",
                self.item.delivery.message.id,
                claim.attempts,
            )

    def begin(self) -> None:
        """A run begins. One before it that was cut off, by its timeout for instance, may have had its effect."""
        if self.cut and not self.doubted:
            log.warning(
                "%s: in doubt: a run of it was cut off, and its effect may have happened; it runs again",
                self.item.delivery.message.id,
            )
            self.in_doubt = self.doubted = True
        self.cut = True

    def take_payload(self) -> Any:
        """The decoded payload, once: a handler may change it."""
        payload, self.payload = self.payload, None
        return payload

    def succeeded(self, result: Any, *, copies: bool) -> None:
        """The handler has returned ``result``. One that cannot be kept is left out: its effect has happened, so it is done."""
        if result is None:
            self.keep(b"", copies=copies)
            return
        try:
            encoded = msgspec.json.encode(result)
        except Exception as error:  # noqa: BLE001 - whatever a result's own code raises
            self._not_kept(f"{type(error).__name__}: {error}; return what msgspec can encode as JSON, or None")
            self.copies = copies
        else:
            self.keep(encoded, copies=copies)

    def keep(self, result: bytes, *, copies: bool) -> None:
        """The handler has succeeded, with ``result`` for its duplicates."""
        self.copies = copies
        self.result = result
        if len(result) > MAX_RESULT:
            self._not_kept(f"it has {len(result)} bytes and may have {MAX_RESULT}; return a reference to it")

    def not_done(self) -> None:
        """Something that it published is refused for good: its message ends otherwise, and a later run has to publish it."""
        if self.result is not None:
            self.result, self.refused = None, True

    @property
    def half_done(self) -> bool:
        """Of what is not done: whether its effect may have happened all the same. The handler has succeeded, and not all that it
        published is with the broker; or an earlier run of it was cut off."""
        return self.refused or self.doubted or self.result is not None

    def _not_kept(self, why: str) -> None:
        self.result = b""
        log.error(
            "%s is done, but its handler's result is not kept, and duplicates get none: %s",
            self.item.delivery.message.id,
            why,
        )
