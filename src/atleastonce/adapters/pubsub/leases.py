"""Acknowledging and moving deadlines: requests of up to a thousand ids and half a megabyte, an outcome for each id."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from typing import Any, Final

import grpc

from atleastonce.adapters.pubsub import faults
from atleastonce.adapters.pubsub.channel import AcknowledgeRequest, Link, ModifyAckDeadlineRequest
from atleastonce.contract import OK, Outcome

_IDS: Final = 1000
_BYTES: Final = 500_000
"""The service refuses acknowledge and modifyAckDeadline requests above 512 KiB (cloud.google.com/pubsub/quotas)."""


class Leases:
    """The acknowledgement ids of one subscription.

    Args:
        subscription: its full name.
        timeout: seconds for one request; a reconnect is in it.
    """

    def __init__(self, link: Link, subscription: str, timeout: float) -> None:
        self._link = link
        self._subscription = subscription
        self._timeout = timeout

    async def acknowledge(self, ids: Sequence[str]) -> Sequence[Outcome]:
        """Done with these."""

        def request(part: Sequence[str]) -> Awaitable[Sequence[Outcome]]:
            asked = AcknowledgeRequest(subscription=self._subscription, ack_ids=part)
            return self._ask("Acknowledge", asked, part)

        return await _in_parts(ids, request)

    async def move(self, ids: Sequence[str], seconds: int) -> Sequence[Outcome]:
        """Let the leases of these end in ``seconds``; 0 gives them back at once."""

        def request(part: Sequence[str]) -> Awaitable[Sequence[Outcome]]:
            asked = ModifyAckDeadlineRequest(
                subscription=self._subscription, ack_ids=part, ack_deadline_seconds=seconds
            )
            return self._ask("ModifyAckDeadline", asked, part)

        return await _in_parts(ids, request)

    async def _ask(self, name: str, request: Any, ids: Sequence[str]) -> Sequence[Outcome]:
        try:
            await self._link.call(name, request, seconds=self._timeout, wait=True)
        except grpc.RpcError as error:
            failed = faults.failed_ids(error)
            if failed:
                return [failed.get(ack_id, OK) for ack_id in ids]
            return [faults.outcome_of(error)] * len(ids)
        return [OK] * len(ids)


async def _in_parts(
    ids: Sequence[str], ask: Callable[[Sequence[str]], Awaitable[Sequence[Outcome]]]
) -> Sequence[Outcome]:
    if not ids:
        return ()
    # The ids of one subscription are about as long as each other.
    most = max(1, min(_IDS, _BYTES // (len(ids[0]) + 32)))
    if len(ids) <= most:
        return await ask(ids)
    parts = [ids[start : start + most] for start in range(0, len(ids), most)]
    return list(chain.from_iterable(await asyncio.gather(*map(ask, parts))))
