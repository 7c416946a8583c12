"""From what a caller passes in to what a store is asked: each key once, no flawed items, at most a thousand at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

from atleastonce.contract.outcomes import OK, Code, Fault, Outcome
from atleastonce.stores.records import (
    LOST,
    MAX_RESULT,
    MISMATCH,
    TOKEN,
    Claim,
    ClaimRequest,
    Completion,
    Lease,
    Status,
    bytes_flaw,
    flaw,
    refused,
    span_flaw,
    token_flaw,
)

CHUNK = 1000
"""Items in one round trip. Fewer: more round trips for a large list. More: the store serves nobody else for longer."""

_T = TypeVar("_T")
_R = TypeVar("_R")
Send: TypeAlias = Callable[[Sequence[_T]], Awaitable[Sequence[_R]]]


async def claims(requests: Sequence[ClaimRequest], send: Send[ClaimRequest, Claim]) -> list[Claim]:
    """Each key is asked once; its other requests are answered as if they had come after the first."""
    answers: list[Claim | None] = [None] * len(requests)
    waiting: dict[tuple[str, str], list[int]] = {}
    for position, request in enumerate(requests):
        if wrong := _claim_flaw(request):
            answers[position] = Claim(Status.REJECTED, fault=Fault(Code.INVALID, detail=wrong))
        else:
            waiting.setdefault((request.scope, request.id), []).append(position)
    while waiting:
        firsts = [positions[0] for positions in waiting.values()]
        replies = await _in_chunks([requests[position] for position in firsts], send)
        again: dict[tuple[str, str], list[int]] = {}
        for (key, positions), reply in zip(waiting.items(), replies, strict=True):
            answers[positions[0]] = reply
            if len(positions) > 1:
                left = _answer_rest(requests, answers, positions, reply)
                if left:
                    again[key] = left
        waiting = again
    return [answer for answer in answers if answer is not None]


def _answer_rest(
    requests: Sequence[ClaimRequest], answers: list[Claim | None], positions: list[int], reply: Claim
) -> list[int]:
    """Answer what follows from the first one's reply; return what has to be asked after all: a mismatch says only that the
    store knows *another* fingerprint, which may be a later one's."""
    first, left = requests[positions[0]], []
    for position in positions[1:]:
        request = requests[position]
        if reply.status is Status.UNKNOWN or (request.fingerprint == first.fingerprint and not reply.granted):
            answers[position] = reply
        elif request.fingerprint == first.fingerprint:
            answers[position] = reply if request.token == first.token else Claim(Status.BUSY, retry_after=first.lease)
        elif reply.status is Status.MISMATCH:
            left.append(position)
        else:
            answers[position] = MISMATCH
    return left


async def extensions(leases: Sequence[Lease], seconds: float, send: Send[Lease, bool | Outcome]) -> list[Outcome]:
    if wrong := span_flaw("the extension", seconds):
        return [refused(wrong)] * len(leases)
    return await _outcomes(leases, leases, [None] * len(leases), send)


async def releases(leases: Sequence[Lease], send: Send[Lease, bool | Outcome]) -> list[Outcome]:
    return await _outcomes(leases, leases, [None] * len(leases), send)


async def completions(items: Sequence[Completion], send: Send[Completion, bool | Outcome]) -> list[Outcome]:
    return await _outcomes(items, [item.lease for item in items], [_completion_flaw(item) for item in items], send)


async def _outcomes(
    items: Sequence[_T], leases: Sequence[Lease], wrong: Sequence[Outcome | None], send: Send[_T, bool | Outcome]
) -> list[Outcome]:
    answers: list[Outcome | None] = list(wrong)
    places: dict[Lease, list[int]] = {}
    for position, lease in enumerate(leases):
        if answers[position] is None:
            if len(lease.token) != TOKEN or flaw(lease.scope, lease.id, b""):
                answers[position] = LOST  # no store ever granted it
            else:
                places.setdefault(lease, []).append(position)
    replies = await _in_chunks([items[positions[0]] for positions in places.values()], send)
    for positions, reply in zip(places.values(), replies, strict=True):
        for position in positions:
            answers[position] = reply if isinstance(reply, Outcome) else (OK if reply else LOST)
    return [answer for answer in answers if answer is not None]


async def _in_chunks(items: Sequence[_T], send: Send[_T, _R]) -> Sequence[_R]:
    if not items:
        return []
    if len(items) <= CHUNK:
        return await send(items)
    found: list[_R] = []
    for start in range(0, len(items), CHUNK):
        found.extend(await send(items[start : start + CHUNK]))
    return found


def _claim_flaw(request: ClaimRequest) -> str | None:
    return (
        token_flaw(request.token)
        or flaw(request.scope, request.id, request.fingerprint)
        or span_flaw("lease", request.lease)
        or span_flaw("ttl", request.ttl)
    )


def _completion_flaw(item: Completion) -> Outcome | None:
    if wrong := bytes_flaw("result", item.result):
        return refused(wrong)
    if len(item.result) > MAX_RESULT:
        text = f"the result has {len(item.result)} bytes and may have {MAX_RESULT}; store a reference to it"
        return refused(text, Code.TOO_LARGE)
    if wrong := span_flaw("ttl", item.ttl):
        return refused(wrong)
    return None
