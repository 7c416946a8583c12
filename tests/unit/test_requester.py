"""`Requester`: limit, breaker, fallback and hedging, over the memory broker."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from front_kit import until
from requester_kit import Shop

from atleastonce import (
    Broker,
    CircuitBreaker,
    ConfigurationError,
    Inbox,
    NoResponder,
    Overloaded,
    Queue,
    QuorumMissed,
    RemoteError,
    Requester,
    RequestTimeout,
    Service,
    SQLiteStore,
    Topic,
    connect,
)
from atleastonce.adapters import open_adapter
from atleastonce.explain import explain
from atleastonce.patterns.circuit_breaker import State

quotes = Queue[int]("quotes", int)


@asynccontextmanager
async def shop() -> AsyncIterator[tuple[Shop, Broker]]:
    url = f"memory://{uuid.uuid4().hex}"
    service, made = Service("shop", broker=url, drain="0s"), Shop()
    service.responder(quotes, concurrency=100)(made.quote)
    async with service, connect(url) as broker:
        yield made, broker


async def test_no_more_than_agreed_are_under_way() -> None:
    async with shop() as (made, broker):
        ask = Requester(broker, quotes, returns=int, concurrency=3, timeout="30s")
        assert await asyncio.gather(*(ask(n) for n in range(50))) == [n * 10 for n in range(50)]
        assert made.most <= 3


async def test_who_gets_no_place_in_time_is_told_so() -> None:
    async with shop() as (made, broker):
        made.slow = {1}
        ask = Requester(broker, quotes, returns=int, concurrency=1, timeout="10s")
        hurried = Requester(broker, quotes, returns=int, concurrency=1, timeout="200ms")
        hurried._places = ask._places
        first = asyncio.create_task(ask(1))
        await until(lambda: made.runs)
        with pytest.raises(Overloaded, match="not sent"):
            await hurried(2)
        made.gate.set()
        assert await first == 10
        assert made.runs == [1]


async def test_the_breaker_opens_probes_and_closes() -> None:
    now = 0.0
    async with shop() as (made, broker):
        breaker = CircuitBreaker(failures=2, within="10s", open_for="5s")
        ask = Requester(broker, quotes, returns=int, circuit=breaker, timeout="30s", clock=lambda: now)
        assert ask.circuit is not None
        for _ in range(4):  # answers, if not good ones: nothing is wrong with the responder
            with pytest.raises(RemoteError):
                await ask(-100)
        for _ in range(2):
            with pytest.raises(RemoteError):
                await ask(-1)
        while ask.circuit.state is not State.OPEN:  # the share: as many again
            with pytest.raises(RemoteError):
                await ask(-1)
        runs = len(made.runs)
        with pytest.raises(Overloaded, match="kept failing"):
            await ask(1)
        assert len(made.runs) == runs
        now = 5.0
        made.slow = {1}
        probe = asyncio.create_task(ask(1))
        await until(lambda: len(made.runs) > runs)
        with pytest.raises(Overloaded):  # one probe and no more
            await ask(2)
        made.gate.set()
        assert await probe == 10
        assert await ask(3) == 30


async def test_a_fallback_stands_in_for_no_answer_and_for_nothing_else() -> None:
    async with shop() as (_, broker):
        nobody = Queue[int]("nobody", int)
        assert await Requester(broker, nobody, fallback=-1)(5) == -1
        assert await Requester(broker, nobody, fallback=None)(5) is None
        seen: list[Exception] = []

        async def cached(payload: int, error: Exception) -> int:
            seen.append(error)
            return payload + 1

        assert await Requester(broker, nobody, fallback=cached)(5) == 6
        assert isinstance(seen[0], NoResponder)
        ask: Requester[int] = Requester(broker, quotes, fallback=cached)
        assert await ask(-1) == 0  # retryable
        with pytest.raises(RemoteError):
            await ask(-100)


async def test_a_slow_answer_is_asked_for_twice_under_one_id() -> None:
    async with shop() as (made, broker):
        made.slow = {7}
        ask: Requester[Any] = Requester(broker, quotes, returns=int, hedge="50ms", timeout="30s")
        assert await ask(7) == 70
        assert made.runs == [7, 7]
        made.gate.set()
        assert await ask(8) == 80
        assert made.runs == [7, 7, 8]
        with pytest.raises(RemoteError):
            await ask(-1)


async def test_a_hedge_that_never_comes_is_refused() -> None:
    async with connect("memory://") as broker:
        with pytest.raises(ConfigurationError, match="hedge"):
            Requester(broker, quotes, hedge="5s", timeout="5s")


async def test_time_runs_from_the_call_on() -> None:
    async with shop() as (made, broker):
        made.slow = {1}
        with pytest.raises(RequestTimeout, match=r"within 0\.1 s"):
            await Requester(broker, quotes, timeout="100ms")(1)
        made.gate.set()


def test_explain_says_what_a_responder_does() -> None:

    service = Service("shop")
    service.responder(quotes)(Shop().quote)
    for url, kept in (("memory://", True), ("nats://127.0.0.1:4222", False)):
        told = explain(service.consumers[0], open_adapter(url).capabilities, drain=25.0)
        assert any("Requests are the exception" in line for line in told.delivery) is not kept
        assert any("answered with an error" in line for line in told.ends)
        assert not any("dead_letter=None" in line for line in told.lost)


def test_a_responder_refuses_what_remembers_no_answers() -> None:

    service = Service("shop")
    with pytest.raises(ConfigurationError, match="Lease"):
        service.responder(quotes, idempotency=Inbox(SQLiteStore("x.db")))(Shop().quote)


@pytest.mark.parametrize("given", ["legacy.*", [1], [""], ["legacy.*", None], b"legacy.*", 5, None])
def test_addresses_that_are_no_patterns_are_refused_when_the_responder_is_registered(given: Any) -> None:
    service = Service("shop")
    with pytest.raises(ConfigurationError, match=r"reply_to=.*: give a list of patterns"):
        service.responder(quotes, reply_to=given)
    assert not service.consumers
    service.responder(quotes, reply_to=("*",))(Shop().quote)  # every address, by its user's wish


async def test_a_circuit_that_is_none_is_refused() -> None:
    async with connect("memory://") as broker:
        with pytest.raises(ConfigurationError, match=r"circuit=3: give CircuitBreaker\(failures=20\)"):
            Requester(broker, quotes, circuit=3)  # type: ignore[arg-type]


async def test_who_asks_all_and_got_answers_was_answered() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    rates = Topic[int]("rates", int)
    services = [Service(name, broker=url, drain="0s") for name in ("north", "south")]
    for factor, service in enumerate(services, 1):

        @service.responder(rates)
        async def rate(n: int, factor: int = factor) -> int:
            return n * factor

    async with services[0], services[1], connect(url) as broker:
        assert sorted(await broker.gather(rates, 5, timeout="200ms", returns=int)) == [5, 10]
        counts = broker.requests
        assert (counts.answered, counts.expired, counts.waiting) == (1, 0, 0)
        with pytest.raises(QuorumMissed):
            await broker.gather(rates, 5, timeout="200ms", at_least=3)
        assert (broker.requests.answered, broker.requests.expired) == (1, 1)
        await broker.declare(Topic("quiet"))
        assert await broker.gather(Topic("quiet"), 5, timeout="50ms") == []
        assert (broker.requests.answered, broker.requests.expired) == (1, 2)
