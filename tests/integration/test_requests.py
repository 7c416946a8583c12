"""Request-reply on every backend: answers, errors, deadlines, forgers, and either side gone."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from atleastonce import (
    Broker,
    Closed,
    Context,
    DecodeError,
    Discard,
    Lease,
    MemoryStore,
    NoResponder,
    Overloaded,
    Queue,
    QuorumMissed,
    RemoteError,
    RequestTimeout,
    Service,
    Topic,
    connect,
    wire,
)
from atleastonce.contract import Outgoing, ReplyTo
from atleastonce.message import Headers, Message, new_id
from atleastonce.patterns.replies import Answer, replies_of, reply_of

MakeTopic = Callable[[str], Topic[Any]]
MakeQueue = Callable[[str], Queue[Any]]

DEADLINE = 30.0
# For what must succeed on a busy machine, where the first request of a broker may have to make its inbox.
PATIENT = "30s"


class Ask(msgspec.Struct):
    n: int


class Quote(msgspec.Struct):
    price: int


async def until(condition: Callable[[], bool], what: str = "") -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {DEADLINE:g} s: {what}")
        await asyncio.sleep(0.01)  # polling a condition with a deadline


def counts(service: Service) -> Counter[str]:
    found: Counter[str] = Counter()
    for status in service.status():
        found.update(status.counts)
    return found


async def test_who_asks_is_answered(backend_url: str, queue: MakeQueue) -> None:
    quotes, echo = queue("quotes"), queue("echo")
    service = Service("shop", broker=backend_url)
    headers: list[Headers] = []

    @service.responder(quotes, concurrency=32)
    async def quote(ask: Ask, ctx: Context) -> Quote:
        headers.append(ctx.headers)
        if ask.n == 13:
            raise ValueError("unlucky")
        if ask.n == 14:
            raise RemoteError("OutOfStock", "none left", retryable=True)
        if ask.n == 15:
            raise Discard("not today")
        return Quote(ask.n * 10)

    @service.responder(echo)
    def answer(body: bytes) -> bytes:
        return body[::-1]

    async with service, connect(backend_url) as broker:
        got = await broker.request(quotes, Ask(1), returns=Quote, timeout=PATIENT, key="k", headers={"tenant": "a"})
        assert got == Quote(10)
        assert headers[0].get("tenant") == "a"
        assert await broker.request(quotes, Ask(2), timeout=PATIENT) == {"price": 20}
        assert await broker.request(echo, b"abc\x00\xff", timeout=PATIENT) == b"\xff\x00cba"
        many = await asyncio.gather(
            *(broker.request(quotes, Ask(n), returns=Quote, timeout=PATIENT) for n in range(100, 300))
        )
        assert many == [Quote(n * 10) for n in range(100, 300)]
        for n, kind, text, retryable in (
            (13, "ValueError", "unlucky", True),
            (14, "OutOfStock", "none left", True),
            (15, "Discard", "not today", False),
        ):
            with pytest.raises(RemoteError) as failed:
                await broker.request(quotes, Ask(n), timeout=PATIENT)
            assert (failed.value.type, failed.value.message, failed.value.retryable) == (kind, text, retryable)
        with pytest.raises(RemoteError) as broken:
            await broker.request(quotes, b"no JSON", timeout=PATIENT)
        assert (broken.value.type, broken.value.retryable) == ("DecodeError", False)
        assert broker.requests.waiting == 0
        assert broker.requests.answered == 207
        assert (broker.requests.late, broker.requests.unknown) == (0, 0)
        assert counts(service)["failed"] == 3
        assert not counts(service)["dead"]


async def test_nobody_is_waited_for_longer_than_said(backend_url: str, queue: MakeQueue) -> None:
    """A request whose time is over before it begins does not run; the answer of one that was at it is late."""
    quotes = queue("quotes")
    service = Service("shop", broker=backend_url)
    runs: list[int] = []
    gate = asyncio.Event()

    @service.responder(quotes, concurrency=1)
    async def quote(ask: Ask) -> Quote:
        runs.append(ask.n)
        if ask.n == 1:
            await gate.wait()
        return Quote(ask.n)

    async with service, connect(backend_url) as broker:
        assert await broker.request(quotes, Ask(0), timeout=PATIENT) == {"price": 0}
        slow = asyncio.create_task(broker.request(quotes, Ask(1), timeout="3s"))
        await until(lambda: 1 in runs, "the first is at it")
        begin = time.monotonic()
        with pytest.raises(RequestTimeout, match=quotes.name):
            await broker.request(quotes, Ask(2), timeout="300ms")
        assert time.monotonic() - begin < 3.0
        with pytest.raises(RequestTimeout):
            await slow
        gate.set()
        await until(lambda: broker.requests.late == 1, "the answer comes too late")
        assert await broker.request(quotes, Ask(3), returns=Quote, timeout=PATIENT) == Quote(3)
        await until(lambda: counts(service)["late"] == 1, "the second was dropped")
    assert runs == [0, 1, 3]


async def test_answers_that_nobody_asked_for_are_dropped(backend_url: str, queue: MakeQueue) -> None:
    quotes = queue("quotes")
    service = Service("shop", broker=backend_url)
    asked: list[Headers] = []

    @service.responder(quotes)
    async def quote(ask: Ask, ctx: Context) -> Quote:
        asked.append(ctx.headers)
        return Quote(ask.n)

    async with service, connect(backend_url) as broker:
        assert await broker.request(quotes, Ask(1), returns=Quote, timeout=PATIENT) == Quote(1)
        address, correlation = asked[0].get(wire.REPLY_TO), asked[0].get(wire.CORRELATION)
        assert address is not None
        if correlation is None:  # it is the end of the address
            correlation = address.rpartition(".")[2]
        assert len(correlation) == 32
        forger = replies_of(service.broker.adapter)
        assert forger.is_address(address)
        forged = "0" * 32
        elsewhere = ReplyTo(address.replace(correlation, forged))
        answer = Answer(b'{"price":0}', "application/json")
        outcomes = await forger.reply(
            [
                reply_of(answer, ReplyTo(address), correlation, "forger"),
                reply_of(answer, elsewhere, forged, "forger"),
                Outgoing(elsewhere, Message(new_id(), b"\x00 no reply at all")),
            ]
        )
        assert all(outcome.ok for outcome in outcomes)
        await until(lambda: broker.requests.duplicate == 1, "the duplicate")
        await until(lambda: broker.requests.unknown == 2, "the forged ones")
        assert await broker.request(quotes, Ask(2), returns=Quote, timeout=PATIENT) == Quote(2)


async def test_no_request_makes_a_responder_publish_anywhere(backend_url: str, queue: MakeQueue) -> None:
    quotes, victim = queue("quotes"), queue("victim")
    service = Service("shop", broker=backend_url)
    runs: list[int] = []

    @service.responder(quotes)
    async def quote(ask: Ask) -> Quote:
        runs.append(ask.n)
        return Quote(ask.n)

    async with service, connect(backend_url) as broker:
        await broker.declare(victim)
        await broker.request(quotes, Ask(1), timeout=PATIENT)
        sent = 0
        for address in (victim.name, "a b PUB x 0", "*", "../x", "x" * 2000):
            item = broker.compose(replace(quotes, requests=True), Ask(2))
            fields = [*item.message.headers.items(), (wire.REPLY_TO, address), (wire.CORRELATION, "c")]
            forged = Outgoing(item.destination, Message(new_id(), b'{"n":2}', None, Headers(fields)))
            (outcome,) = await broker.adapter.send([forged])
            sent += outcome.ok  # NATS refuses what is no subject before anybody sees it
        assert sent >= 2
        await until(lambda: counts(service)["refused"] == sent, "all are refused")
        assert (await broker.backlog(victim)).waiting in (0, None)
    assert runs == [1]


async def test_an_answer_that_is_too_large_is_an_error(backend_url: str, queue: MakeQueue) -> None:
    quotes = queue("quotes")
    service = Service("shop", broker=backend_url)

    @service.responder(quotes)
    async def quote(size: int) -> bytes:
        return b"x" * size

    async with service, connect(backend_url) as broker:
        most = broker.adapter.capabilities.max_message_bytes
        assert most is not None
        assert await broker.request(quotes, 3, timeout=PATIENT) == b"xxx"
        with pytest.raises(RemoteError, match="ReplyTooLarge"):
            await broker.request(quotes, most + 1, timeout=PATIENT)


async def test_an_asker_that_is_gone_costs_nothing(backend_url: str, queue: MakeQueue) -> None:
    """The answer goes nowhere: no error loop, and the others are answered."""
    quotes = queue("quotes")
    service = Service("shop", broker=backend_url)
    gate = asyncio.Event()
    running = asyncio.Event()

    @service.responder(quotes, concurrency=8)
    async def quote(ask: Ask) -> Quote:
        if ask.n == 1:
            running.set()
            await gate.wait()
        return Quote(ask.n)

    async with service:
        async with connect(backend_url) as gone:
            asking = asyncio.create_task(gone.request(quotes, Ask(1), timeout=PATIENT))
            await running.wait()
        with pytest.raises(Closed):
            await asking
        gate.set()
        async with connect(backend_url) as broker:
            assert await broker.request(quotes, Ask(2), returns=Quote, timeout=PATIENT) == Quote(2)
        await until(lambda: sum(counts(service)[name] for name in ("done", "unheard")) == 2, "both have ended")
        await until(lambda: sum(status.in_flight for status in service.status()) == 0, "nothing is left")


async def test_a_duplicate_gets_the_first_answer(backend_url: str, queue: MakeQueue) -> None:
    quotes = queue("quotes")
    service = Service("shop", broker=backend_url)
    runs: list[int] = []

    @service.responder(quotes, idempotency=Lease(MemoryStore()))
    async def quote(ask: Ask) -> dict[str, int]:
        runs.append(ask.n)
        return {"run": len(runs)}

    @service.responder(queue("other"), idempotency=Lease(MemoryStore()))
    def fails(ask: Ask) -> None:
        runs.append(ask.n)
        raise KeyError(ask.n)

    async with service, connect(backend_url) as broker:
        asking = [broker.request(quotes, Ask(7), id="ask-7", timeout=PATIENT) for _ in range(5)]
        assert await asyncio.gather(*asking) == [{"run": 1}] * 5
        assert runs == [7]
        for _ in range(2):  # what failed is not remembered: it may be asked again
            with pytest.raises(RemoteError, match="KeyError"):
                await broker.request(queue("other"), Ask(8), id="ask-8", timeout=PATIENT)
    assert runs == [7, 8, 8]


async def test_many_are_asked_at_once(backend_url: str, topic: MakeTopic) -> None:
    quotes = topic("quotes")
    service, other = Service("shop", broker=backend_url), Service("other", broker=backend_url)
    third = Service("third", broker=backend_url)

    @service.responder(quotes)
    async def one(ask: Ask) -> Quote:
        return Quote(1)

    @other.responder(quotes)
    async def two(ask: Ask) -> Quote:
        return Quote(2)

    @third.responder(quotes)
    async def broken(ask: Ask) -> Quote:
        raise ValueError("broken")

    async with service, other, third, connect(backend_url) as broker:
        both = await broker.gather(quotes, Ask(1), timeout=PATIENT, at_least=2, returns=Quote)
        assert sorted(quote.price for quote in both) == [1, 2]
        with pytest.raises(QuorumMissed) as missed:
            await broker.gather(quotes, Ask(1), timeout="1500ms", at_least=3, returns=Quote)
        assert len(missed.value.replies) <= 2
        assert all(isinstance(reply, Quote) for reply in missed.value.replies)
        everything = await broker.gather(quotes, Ask(1), timeout="2s", returns=Quote)
        assert {quote.price for quote in everything} <= {1, 2}


async def test_an_answer_to_a_gather_that_does_not_decode_is_one_of_the_errors(
    backend_url: str, topic: MakeTopic
) -> None:
    quotes = topic("quotes")
    one, two, failing, odd = (Service(name, broker=backend_url) for name in ("one", "two", "failing", "odd"))

    @odd.responder(quotes)
    async def no_quote(ask: Ask) -> bytes:
        return b"no JSON"

    @failing.responder(quotes)
    async def broken(ask: Ask) -> Quote:
        raise ValueError("broken")

    async def after_the_others() -> None:
        await until(lambda: bool(counts(odd)["done"] and counts(failing)["failed"]), "the others have answered")

    @one.responder(quotes)
    async def first(ask: Ask) -> Quote:
        await after_the_others()
        return Quote(1)

    @two.responder(quotes)
    async def second(ask: Ask) -> Quote:
        await after_the_others()
        return Quote(2)

    def ensure_all(replies: Iterable[Quote], errors: Iterable[Exception]) -> None:
        assert sorted(quote.price for quote in replies) == [1, 2]
        assert sorted(type(error).__name__ for error in errors) == ["DecodeError", "RemoteError"]

    async with one, two, failing, odd, connect(backend_url) as broker:
        both = await broker.gather(quotes, Ask(1), timeout=PATIENT, at_least=2, returns=Quote)
        assert sorted(quote.price for quote in both) == [1, 2]
        assert all(isinstance(error, DecodeError | RemoteError) for error in both.errors)
        for timeout in ("1s", "4s", "16s"):  # the whole time is waited for: more of it only where not all came
            with pytest.raises(QuorumMissed, match="of 3 answers") as missed:
                await broker.gather(quotes, Ask(1), timeout=timeout, at_least=3, returns=Quote)
            if len(missed.value.replies) + len(missed.value.errors) == 4:
                break
        ensure_all(missed.value.replies, missed.value.errors)
        for timeout in ("1s", "4s", "16s"):
            everything = await broker.gather(quotes, Ask(1), timeout=timeout, returns=Quote)
            if len(everything) + len(everything.errors) == 4:
                break
        ensure_all(everything, everything.errors)


@pytest.mark.parametrize(
    ("raised", "ends"),
    [(asyncio.CancelledError, QuorumMissed), (MemoryError, MemoryError), (SystemExit, SystemExit)],
    ids=lambda each: each.__name__,
)
async def test_a_validator_that_ends_a_gather_harms_no_other_request(
    raised: type[BaseException], ends: type[BaseException]
) -> None:
    class Leaving(msgspec.Struct):
        def __post_init__(self) -> None:
            raise raised

    quotes: Topic[Any] = Topic("quotes")
    service = Service("shop", broker="memory://validator")

    @service.responder(quotes)
    async def quote(ask: dict[str, int]) -> dict[str, int]:
        return ask

    async with service, connect("memory://validator") as broker:
        with pytest.raises(ends) as caught:
            await broker.gather(quotes, {"n": 1}, timeout="1s", at_least=1, returns=Leaving)
        if isinstance(caught.value, QuorumMissed):  # nobody cancelled a validator: it is a failure of its answer
            assert [type(error) for error in caught.value.errors] == [DecodeError]
        assert await broker.gather(quotes, {"n": 2}, timeout=PATIENT, at_least=1) == [{"n": 2}]


async def test_where_nobody_answers(backend_url: str, queue: MakeQueue) -> None:
    async with connect(backend_url) as broker:
        with pytest.raises(NoResponder, match=r"quotes|responder"):
            await broker.request(queue("quotes"), Ask(1), timeout=PATIENT)
        assert broker.requests.waiting == 0


async def test_thousands_wait_at_once_and_no_more_than_agreed(backend_url: str, queue: MakeQueue) -> None:
    quotes = queue("quotes")
    service = Service("shop", broker=backend_url)
    gate = asyncio.Event()

    @service.responder(quotes, concurrency=100)
    async def quote(ask: Ask) -> int:
        await gate.wait()
        return ask.n

    async with service, Broker(backend_url, max_requests=2000) as broker:
        warm = asyncio.create_task(broker.request(quotes, Ask(0), timeout="60s"))
        await until(lambda: broker.requests.waiting == 1, "the inbox is open")
        before = len(asyncio.all_tasks())
        asking = [asyncio.create_task(broker.request(quotes, Ask(n), timeout="60s")) for n in range(1, 2000)]
        await until(lambda: broker.requests.waiting == 2000, "all wait")
        with pytest.raises(Overloaded, match="2000 requests"):
            await broker.request(quotes, Ask(-1), timeout="60s")
        ours = len(asyncio.all_tasks()) - before - len(asking)
        gate.set()
        assert await asyncio.gather(warm, *asking) == list(range(2000))
        assert ours < 150  # the responder's 100 places among them: no task for a request
