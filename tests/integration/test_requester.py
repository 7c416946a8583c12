"""`Requester` and `gather` on every backend: limit, breaker, fallback, a second try in parallel, quorum and what is left of one."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from front_kit import until
from requester_kit import Shop

from atleastonce import (
    Broker,
    CircuitBreaker,
    NoResponder,
    Overloaded,
    Queue,
    QuorumMissed,
    RemoteError,
    Requester,
    RequestTimeout,
    Service,
    Topic,
    connect,
)
from atleastonce.patterns.circuit_breaker import State

MakeQueue = Callable[[str], Queue[Any]]
MakeTopic = Callable[[str], Topic[Any]]

DEADLINE = 30.0
# For what must succeed on a busy machine, where the first request of a broker may have to make its inbox.
PATIENT = "30s"


@asynccontextmanager
async def opened(url: str, quotes: Queue[Any]) -> AsyncIterator[tuple[Shop, Broker]]:
    """The inbox is open and the responder listens: what follows takes as long as it takes."""
    service, shop = Service("shop", broker=url, drain="1s"), Shop(takes=0.005)
    service.responder(quotes, concurrency=50)(shop.quote)
    async with service, connect(url) as broker:
        assert await broker.request(quotes, 0, timeout=PATIENT) == 0
        yield shop, broker


async def test_no_more_are_under_way_than_agreed(backend_url: str, queue: MakeQueue) -> None:
    quotes = queue("quotes")
    async with opened(backend_url, quotes) as (shop, broker):
        ask = Requester(broker, quotes, returns=int, concurrency=4, timeout=PATIENT)
        assert await asyncio.gather(*(ask(n) for n in range(60))) == [n * 10 for n in range(60)]
        assert 2 <= shop.most <= 4
        shop.slow = {1000, 1001, 1002, 1003}
        held = [asyncio.create_task(ask(n)) for n in range(1000, 1004)]
        await until(lambda: not shop.slow, DEADLINE, "all places are taken")
        hurried: Requester[int] = Requester(broker, quotes, concurrency=1, timeout="300ms")
        hurried._places = ask._places
        with pytest.raises(Overloaded, match="not sent: all places"):
            await hurried(5)
        shop.gate.set()
        assert await asyncio.gather(*held) == [10_000, 10_010, 10_020, 10_030]
        assert 5 not in shop.runs[61:]


async def test_the_breaker_opens_on_timeouts_and_closes_with_one_probe(backend_url: str, queue: MakeQueue) -> None:
    quotes = queue("quotes")
    breaker = CircuitBreaker(failures=3, within="60s", open_for="1s")
    async with opened(backend_url, quotes) as (shop, broker):
        ask = Requester(broker, quotes, returns=int, circuit=breaker, timeout="400ms")
        assert ask.circuit is not None
        shop.slow = set(range(1, 7))
        for n in (1, 2, 3):
            with pytest.raises(RequestTimeout):
                await ask(n)
        assert ask.circuit.state is State.OPEN
        with pytest.raises(Overloaded, match="kept failing"):
            await ask(4)
        await asyncio.sleep(1.0)  # the circuit's rest
        probe = asyncio.create_task(ask(5))
        await until(lambda: 5 in shop.runs, DEADLINE, "the probe is sent")
        with pytest.raises(Overloaded):  # and nothing beside it
            await ask(6)
        with pytest.raises(RequestTimeout):  # it fails: another rest
            await probe
        with pytest.raises(Overloaded, match="kept failing"):
            await ask(6)
        shop.gate.set()
        await asyncio.sleep(1.0)  # the circuit's rest
        patient = Requester(broker, quotes, returns=int, circuit=breaker, timeout=PATIENT)
        patient.circuit = ask.circuit
        assert await patient(7) == 70
        assert await asyncio.gather(*(patient(n) for n in range(8, 12))) == [80, 90, 100, 110]
        assert not {4, 6} & set(shop.runs), "what the circuit refuses is not sent"


async def test_a_fallback_stands_in_for_no_answer_alone(backend_url: str, queue: MakeQueue) -> None:
    quotes, nobody = queue("quotes"), queue("nobody")
    seen: list[Exception] = []

    def instead(payload: int, error: Exception) -> int:
        seen.append(error)
        return payload + 1

    async with opened(backend_url, quotes) as (shop, broker):
        assert await Requester(broker, nobody, fallback=instead, timeout=PATIENT)(5) == 6
        ask: Requester[int] = Requester(broker, quotes, returns=int, fallback=instead, timeout=PATIENT)
        assert await ask(-1) == 0
        shop.slow = {1}
        late: Requester[int] = Requester(broker, quotes, returns=int, fallback=instead, timeout="300ms")
        assert await late(1) == 2
        shop.gate.set()
        assert [type(error) for error in seen] == [NoResponder, RemoteError, RequestTimeout]
        with pytest.raises(RemoteError, match="Broken"):
            await ask(-200)
        assert await ask(3) == 30


async def test_without_a_hedge_nothing_is_asked_twice(backend_url: str, queue: MakeQueue) -> None:
    quotes = queue("quotes")
    async with opened(backend_url, quotes) as (shop, broker):
        shop.slow = {7}
        asking = asyncio.create_task(Requester(broker, quotes, returns=int, timeout=PATIENT)(7))
        await until(lambda: 7 in shop.runs, DEADLINE, "it runs")
        await asyncio.sleep(0.5)  # nothing else comes, which only time shows
        assert shop.runs.count(7) == 1
        shop.gate.set()
        assert await asking == 70


async def test_with_a_hedge_the_first_answer_wins_and_the_other_is_late(backend_url: str, queue: MakeQueue) -> None:
    quotes = queue("quotes")
    await _hedged(backend_url, quotes)


@pytest.mark.parametrize("backend", ["sqs", "pubsub", "nats", "redis"])
async def test_a_hedge_passes_what_drops_repetitions(
    backend: str, queue: MakeQueue, request: pytest.FixtureRequest
) -> None:
    """Where the broker knows a publish by its id, a second question under the same one is another publish all the same."""
    url = request.getfixturevalue(f"{backend}_url")
    options = {"nats": {"core": False}} if backend == "nats" else {}
    quotes: Queue[Any] = Queue(queue("quotes").name, fifo=backend in ("sqs", "pubsub"), options=options)
    await _hedged(f"{url}{'&' if '?' in url else '?'}dedupe=60s" if backend == "redis" else url, quotes)


async def _hedged(url: str, quotes: Queue[Any]) -> None:
    async with opened(url, quotes) as (shop, broker):
        before = broker.requests
        shop.slow = {7}
        ask: Requester[int] = Requester(broker, quotes, returns=int, hedge="200ms", timeout=PATIENT)
        assert await asyncio.wait_for(ask(7), DEADLINE) == 70
        assert shop.runs.count(7) == 2
        shop.gate.set()
        await until(lambda: broker.requests.late == before.late + 1, DEADLINE, "the first answer comes too late")
        assert await ask(8) == 80
        requests = broker.requests
        assert (requests.waiting, requests.duplicate, requests.unknown) == (0, 0, 0)


async def test_a_quorum_and_what_came_when_it_is_missed(backend_url: str, topic: MakeTopic) -> None:
    rates = topic("rates")
    gate, services = asyncio.Event(), []
    for number in range(4):
        service = Service(f"bank{number}", broker=backend_url, drain="1s")

        @service.responder(rates)
        async def rate(n: int, number: int = number) -> int:
            if number == 2:
                raise RemoteError("Closed", "not on sundays", retryable=False)
            if number == 3:
                await gate.wait()
            return n * 10 + number

        services.append(service)
    async with services[0], services[1], services[2], services[3], connect(backend_url) as broker:
        assert sorted(await broker.gather(rates, 1, timeout=PATIENT, at_least=2, returns=int)) == [10, 11]
        late = broker.requests.late
        begin = time.monotonic()
        with pytest.raises(QuorumMissed) as missed:
            await broker.gather(rates, 2, timeout="3s", at_least=3, returns=int)
        assert time.monotonic() - begin >= 3.0
        assert sorted(missed.value.replies) == [20, 21]  # type: ignore[type-var]
        assert [str(error) for error in missed.value.errors] == ["Closed: not on sundays"]
        came = await broker.gather(rates, 3, timeout="3s", returns=int)
        assert (sorted(came), [error.type for error in came.errors]) == ([30, 31], ["Closed"])
        gate.set()
        await until(lambda: broker.requests.late >= late + 2, DEADLINE, "who was slow answers to nobody")
        assert len(await broker.gather(rates, 4, timeout=PATIENT, at_least=3, returns=int)) == 3
        assert broker.requests.waiting == 0
