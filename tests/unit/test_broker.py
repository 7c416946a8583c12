"""The broker's face: what publishing raises, what is declared when, and how it waits for a broker that is not there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from front_kit import FakeAdapter, until

from atleastonce import (
    BrokerUnavailable,
    Closed,
    ConfigurationError,
    EncodeError,
    InvalidMessage,
    MessageTooLarge,
    MissingExtra,
    Overloaded,
    PermissionDenied,
    Queue,
    Rejected,
    Source,
    Topic,
    Unconfirmed,
    connect,
)
from atleastonce.broker import Broker
from atleastonce.contract import OK, Code, Drift, Topology, rejected, unknown
from atleastonce.engine.backoff import Backoff

QUEUE: Queue[Any] = Queue("q")


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> FakeAdapter:
    fake = FakeAdapter()
    monkeypatch.setattr("atleastonce.broker.open_adapter", lambda *_: fake)
    monkeypatch.setattr("atleastonce.broker._CONNECT", Backoff("1ms", factor=1, jitter=0))
    return fake


def fake(**settings: Any) -> Broker:
    return connect("fake://h", **settings)


def answer(adapter: FakeAdapter, *outcomes: object) -> None:
    adapter.sender.answers.append(lambda _: list(outcomes))  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- publishing


async def test_publish_returns_the_id_once_confirmed(adapter: FakeAdapter) -> None:
    async with fake() as broker:
        assert await broker.publish(QUEUE, {"n": 1}, id="order-1") == "order-1"
        made = await broker.publish(QUEUE, {"n": 1})
        assert adapter.sender.calls == [["order-1"], [made]]


@pytest.mark.parametrize(
    ("outcome", "error", "sentence"),
    [
        (rejected(Code.NOT_FOUND, "no such queue"), Rejected, "id-1 to queue q: not-found: no such queue"),
        (
            rejected(Code.TOO_LARGE, "over 1 MiB"),
            MessageTooLarge,
            "send a reference to it instead, or raise the broker's limit",
        ),
        (rejected(Code.PERMISSION), Rejected, "id-1 to queue q: permission"),
        (
            unknown(Code.TIMEOUT, "no reply"),
            Unconfirmed,
            "publishing the same id again is safe for an idempotent consumer",
        ),
    ],
)
async def test_what_is_not_confirmed_raises(
    adapter: FakeAdapter, outcome: Any, error: type[Exception], sentence: str
) -> None:
    async with fake() as broker:
        answer(adapter, outcome)
        with pytest.raises(error, match=sentence) as caught:
            await broker.publish(QUEUE, b"", id="id-1")
        assert type(caught.value) is error
        assert await broker.publish(QUEUE, b"")


async def test_an_adapter_that_breaks_leaves_a_publish_unconfirmed(adapter: FakeAdapter) -> None:
    async with fake() as broker:
        adapter.sender.answers.append(lambda _: RuntimeError("client bug"))
        with pytest.raises(Unconfirmed, match="client bug"):
            await broker.publish(QUEUE, b"")


async def test_a_full_window_is_overload(adapter: FakeAdapter) -> None:
    async with fake(max_pending=1, publish_timeout="10ms") as broker:
        adapter.sender.gate.clear()
        first = asyncio.create_task(broker.publish(QUEUE, b"", id="first"))
        await until(lambda: adapter.sender.out == 1)
        with pytest.raises(Overloaded):
            await broker.publish(QUEUE, b"", id="second")
        adapter.sender.gate.set()
        assert await first == "first"
        assert adapter.sender.calls == [["first"]]


async def test_bad_input_costs_nothing(adapter: FakeAdapter) -> None:
    async with fake() as broker:
        bad: Iterable[tuple[type[Exception], dict[str, Any]]] = [
            (EncodeError, {"payload": object()}),
            (InvalidMessage, {"headers": {"a": "b\r\nalo-id: x"}}),
            (InvalidMessage, {"headers": {"alo-id": "x"}}),
            (InvalidMessage, {"key": 5}),
            (InvalidMessage, {"id": ""}),
            (ConfigurationError, {"delay": "1h"}),
            (ConfigurationError, {"channel": "q"}),
        ]
        for error, given in bad:
            options = {"channel": QUEUE, "payload": b"", **given}
            with pytest.raises(error):
                await broker.publish(options.pop("channel"), options.pop("payload"), **options)
        with pytest.raises(EncodeError):
            await broker.publish_many(QUEUE, [1, 2, object()])
        with pytest.raises(InvalidMessage):
            await broker.publish_many(QUEUE, [1, 2], id=lambda n: "" if n == 2 else "x")
        assert not adapter.sender.calls
        assert not adapter.declared


async def test_publish_many_takes_key_and_id_from_the_payload(adapter: FakeAdapter) -> None:
    async with fake() as broker:
        answer(adapter, OK, rejected(Code.TOO_LARGE), unknown(Code.TIMEOUT))
        outcomes = await broker.publish_many(
            QUEUE, iter([1, 2, 3]), id=lambda n: f"id-{n}", key=str, headers={"a": "b"}
        )
        assert [outcome.status.value for outcome in outcomes] == ["ok", "rejected", "unknown"]
        assert adapter.sender.calls == [["id-1", "id-2", "id-3"]]
        assert await broker.publish_many(QUEUE, []) == []


# -------------------------------------------------------------------------------------------------- declaring


@pytest.mark.parametrize("count", [5, 250])
@pytest.mark.parametrize(
    "change", [lambda items: items.append(items[0]), lambda items: items.clear()], ids=["more", "none"]
)
async def test_a_list_that_its_owner_changes_while_it_is_out_is_sent_as_it_was(
    adapter: FakeAdapter, change: Callable[[list[Any]], None], count: int
) -> None:
    async with fake() as broker:
        items = [broker.compose(QUEUE, b"", id=f"m{n}") for n in range(count)]
        adapter.sender.gate.clear()
        sending = asyncio.create_task(broker.send(items))
        await until(lambda: adapter.sender.out == 1)
        change(items)
        adapter.sender.gate.set()
        assert await sending == [OK] * count
        assert [id for call in adapter.sender.calls for id in call] == [f"m{n}" for n in range(count)]
    assert broker._publisher.pending == 0


async def test_a_channel_is_declared_once_however_many_publish_at_once(adapter: FakeAdapter) -> None:
    async with fake() as broker:
        adapter.declaring.clear()
        tasks = [asyncio.create_task(broker.publish(QUEUE, b"")) for _ in range(20)]
        await until(lambda: adapter.declared)
        await asyncio.sleep(0)
        adapter.declaring.set()
        await asyncio.gather(*tasks)
        await broker.publish_many(QUEUE, [b""])
        await broker.send([broker.compose(QUEUE, b"")])
        assert adapter.declared == [(Topology(channels=(QUEUE,), sources=(Source(QUEUE),)), True)]
        await broker.publish(Topic("t"), b"")
        assert adapter.declared[1:] == [(Topology(channels=(Topic("t"),)), True)]


async def test_a_declaration_that_fails_or_is_cancelled_is_made_up_for(adapter: FakeAdapter) -> None:
    async with fake() as broker:
        adapter.declares.append(PermissionDenied("no"))
        with pytest.raises(PermissionDenied):
            await broker.publish(QUEUE, b"")
        adapter.declaring.clear()
        first = asyncio.create_task(broker.publish(QUEUE, b""))
        await until(lambda: len(adapter.declared) == 2)
        second = asyncio.create_task(broker.publish(QUEUE, b""))
        first.cancel()
        await until(lambda: len(adapter.declared) == 3)
        adapter.declaring.set()
        assert await second
        assert first.cancelled()


async def test_without_create_nothing_is_declared(adapter: FakeAdapter) -> None:
    async with fake(create=False) as broker:
        await broker.publish(QUEUE, b"")
        await broker.publish_many(QUEUE, [b""])
        assert not adapter.declared


async def test_declare_makes_a_queue_that_keeps_its_messages_and_returns_each_drift_once(adapter: FakeAdapter) -> None:
    async with fake() as broker:
        adapter.drifts = [Drift("q", "partitions", "3", "1"), Drift("q", "partitions", "3", "1")]
        assert await broker.declare(QUEUE, Source(QUEUE), Topology(channels=(Topic("t"),))) == adapter.drifts[:1]
        assert adapter.declared[0] == (Topology(channels=(QUEUE,), sources=(Source(QUEUE),)), True)
        await broker.publish(QUEUE, b"")
        assert len(adapter.declared) == 2, "declared already"
        await broker.declare(Topic("u"), create=False)
        await broker.publish(Topic("u"), b"")
        assert [create for _, create in adapter.declared[2:]] == [False, True], "looking is not making"


# ------------------------------------------------------------------------------------------ opening and closing


async def test_a_broker_that_is_down_is_waited_for_with_the_reason(adapter: FakeAdapter) -> None:
    adapter.opens.extend(BrokerUnavailable(f"refused {n}") for n in range(3))
    told: list[str] = []
    async with fake(waiting=told.append):
        assert adapter.opened == 4
    assert told == [f"refused {n}; trying again in 0.0 s" for n in range(3)]


async def test_no_wait_fails_at_once(adapter: FakeAdapter) -> None:
    adapter.opens.extend(BrokerUnavailable("refused") for _ in range(3))
    told: list[str] = []
    with pytest.raises(BrokerUnavailable, match="refused"):
        await fake(wait=0, waiting=told.append).open()
    assert adapter.opened == 1
    assert not told


async def test_one_try_does_not_outlast_the_time(adapter: FakeAdapter) -> None:
    """An address that swallows everything."""
    adapter.opening.clear()
    begin = asyncio.get_running_loop().time()
    with pytest.raises(BrokerUnavailable, match=r"fake://h/? does not answer; waited 1 s for it"):
        await fake(wait="600ms").open()
    assert 0.6 <= asyncio.get_running_loop().time() - begin < 2


async def test_a_try_that_is_cut_says_what_the_one_before_met(adapter: FakeAdapter) -> None:
    adapter.opens.append(BrokerUnavailable("refused"))
    with pytest.raises(BrokerUnavailable, match=r"refused; waited 1 s for it"):
        await fake(wait="600ms", waiting=lambda _: adapter.opening.clear()).open()
    assert adapter.opened == 2


async def test_the_whole_time_is_waited_and_no_longer(adapter: FakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atleastonce.broker._CONNECT", Backoff("20ms", factor=1e6, maximum="1h", jitter=0))
    adapter.opens.extend(BrokerUnavailable("refused") for _ in range(9))
    begin = asyncio.get_running_loop().time()
    with pytest.raises(BrokerUnavailable, match=r"refused; waited \d+ s for it \(wait=None waits for ever\)"):
        async with asyncio.timeout(10):
            await fake(wait="50ms", waiting=lambda _: None).open()
    assert asyncio.get_running_loop().time() - begin >= 0.05
    assert adapter.opened == 3, "at once, after 20 ms, and when the time was over"


async def test_a_refusal_is_not_waited_for_and_leaves_nothing_open(adapter: FakeAdapter) -> None:
    adapter.opens.append(PermissionDenied("wrong password"))
    with pytest.raises(PermissionDenied):
        async with fake():
            pass
    assert (adapter.opened, adapter.closed) == (1, 1)


async def test_waiting_can_be_cancelled(adapter: FakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atleastonce.broker._CONNECT", Backoff("1h", maximum="1h"))
    adapter.opens.append(BrokerUnavailable("refused"))
    opening = asyncio.create_task(fake(wait=None, waiting=lambda _: None).__aenter__())
    await until(lambda: adapter.opened)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert adapter.closed == 1


async def test_close_is_idempotent_and_final(adapter: FakeAdapter) -> None:
    broker = fake()
    await broker.open()
    await broker.publish(QUEUE, b"")
    await broker.close()
    await broker.close()
    with pytest.raises(Closed):
        await broker.publish(QUEUE, b"")
    with pytest.raises(Closed):
        await broker.publish_many(QUEUE, [b""])


async def test_close_lets_a_publish_end(adapter: FakeAdapter) -> None:
    broker = fake()
    await broker.open()
    adapter.sender.gate.clear()
    publishing = asyncio.create_task(broker.publish(QUEUE, b"", id="x"))
    await until(lambda: adapter.sender.out == 1)
    closing = asyncio.create_task(broker.close())
    await asyncio.sleep(0)
    assert adapter.closed == 0
    adapter.sender.gate.set()
    assert await publishing == "x"
    await closing
    assert adapter.closed == 1


async def test_before_open_it_is_closed() -> None:
    broker = connect("memory://")
    with pytest.raises(Closed):
        await broker.publish(QUEUE, b"")


# ------------------------------------------------------------------------------------------------- bad addresses


@pytest.mark.parametrize(
    ("url", "error", "sentence"),
    [
        ("kafak://h", ConfigurationError, 'did you mean "kafka://"'),
        ("pigeon://h", ConfigurationError, "known: kafka, memory"),
        ("localhost", ConfigurationError, "scheme://host:port"),
        ("memory://a:1", ConfigurationError, "write memory:// or memory://name"),
        ("memory://?leese=1", ConfigurationError, 'unknown option "leese"'),
        (None, ConfigurationError, "is text"),
    ],
)
def test_a_bad_address_is_one_line(url: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        connect(url)
    assert "\n" not in str(caught.value)


def test_a_missing_client_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'confluent_kafka'", name="confluent_kafka")

    monkeypatch.setattr("atleastonce.adapters.importlib.import_module", absent)
    with pytest.raises(
        MissingExtra, match=r'confluent_kafka is not installed; run: pip install "atleastonce\[kafka\]"'
    ):
        connect("kafka://h")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_pending": 0}, "max_pending=0"),
        ({"max_pending": "10"}, "max_pending='10'"),
        ({"max_pending_bytes": "many"}, "max_pending_bytes"),
        ({"publish_timeout": "soon"}, "publish_timeout"),
        ({"wait": -1}, "wait"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        connect("memory://", **settings)


def test_no_repr_shows_a_password(adapter: FakeAdapter) -> None:
    for url in ("fake://u:hunter2@h", "fake://u:x@hunter2@h", "fake://u:a hunter2@h", "fake://h?password=hunter2"):
        broker = connect(url)
        assert "hunter2" not in repr(broker) + str(broker) + broker.url
        assert repr(broker).startswith("<Broker fake://")
