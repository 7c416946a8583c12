"""The demo's input, and what its web shop makes of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from atleastonce import ConfigurationError, MessageTooLarge, Topic, connect
from atleastonce.cli.demo.orders import SUPPLIED, Order, check_orders, read_orders
from atleastonce.cli.demo.publish import Shop, broken, chunks, repeated
from atleastonce.cli.demo.services import cents_of_release_1, cents_of_release_2
from atleastonce.contract import OK, Code, Outcome, Outgoing, rejected, unknown

ROOT = Path(__file__).parents[2]


def good(number: int | str, total: float = 9.5) -> bytes:
    return msgspec.json.encode({"order_id": number, "customer_id": "c-1", "total": total})


def test_the_supplied_file_is_whole_and_has_the_bug_in_it() -> None:
    orders = read_orders(SUPPLIED)
    assert len(orders.lines) == 10_000
    assert not orders.problems
    totals = [msgspec.json.decode(line.body, type=Order).total for line in orders.lines]
    assert sum(cents_of_release_1(total) / 100 != total for total in totals) > 100
    assert all(cents_of_release_2(total) / 100 == total for total in totals)


def test_the_supplied_file_is_what_its_script_writes(capsys: pytest.CaptureFixture[str]) -> None:
    script = ROOT / "examples" / "make_orders.py"
    spec = importlib.util.spec_from_file_location("make_orders", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    assert capsys.readouterr().out == SUPPLIED.read_text()
    assert (ROOT / "examples" / "orders.jsonl").read_bytes() == SUPPLIED.read_bytes()


def test_bad_lines_are_named_and_their_neighbours_kept() -> None:
    lines = [
        good(1),
        b"",
        b"{",
        b'{"order_id": 2}',
        good(1),
        good(3, -1),
        good("\n"),
        b"\xff",
        good(4) + b" " * (1 << 20) + b"x",
        good(5),
    ]
    orders = check_orders(lines, "my.jsonl")
    assert [line.message_id for line in orders.lines] == ["order-1", "order-5"]
    assert [problem.split(" ")[0] for problem in orders.problems] == [f"my.jsonl:{n}:" for n in (3, 4, 5, 6, 7, 8, 9)]
    assert "customer_id" in orders.problems[1]
    assert "order_id 1 is on line 1 already" in orders.problems[2]


def test_a_byte_order_mark_is_no_part_of_the_first_order(tmp_path: Path) -> None:
    file = tmp_path / "editor.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + good(1) + b"\r\n" + b"\xef\xbb\xbf" + good(2) + b"\n" + good(3))
    orders = read_orders(file)
    assert [line.body for line in orders.lines] == [good(1), good(3)]
    assert [problem.split(" ")[0] for problem in orders.problems] == ["editor.jsonl:2:"]


def test_a_file_without_orders_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(ConfigurationError, match="holds no order"):
        read_orders(empty)
    with pytest.raises(ConfigurationError, match="No such file"):
        read_orders(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match="directory"):
        read_orders(tmp_path)


def test_more_orders_than_the_file_has_get_ids_of_their_own() -> None:
    lines = check_orders([good(n) for n in range(3)], "x").lines
    more = repeated(lines, 8)
    assert len({line.message_id for line in more}) == 8
    assert [line.message_id for line in more[6:]] == ["order-0-3", "order-1-3"]
    for line in more:
        assert f"order-{msgspec.json.decode(line.body)['order_id']}" == line.message_id
    assert repeated(lines, 2) == lines[:2]


def test_poison_does_not_decode_and_every_50th_order_comes_twice() -> None:
    lines = broken(repeated(check_orders([good(n) for n in range(3)], "x").lines, 1200))
    poison = 0
    for line in lines:
        try:
            msgspec.json.decode(line.body)
        except msgspec.DecodeError:
            poison += 1
    assert poison == 3
    pairs = list(chunks(lines))
    assert [line for chunk, _ in pairs for line in chunk] == lines
    assert [line for _, twice in pairs for line in twice] == lines[49::50]


async def test_the_shop_repeats_what_is_unknown_and_names_what_is_rejected() -> None:
    lines = check_orders([good(n) for n in range(4)], "x").lines
    broker = connect("memory://")
    calls: list[list[str]] = []

    async def send(batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        calls.append([item.message.id for item in batch])
        if len(calls) == 1:
            return [OK, unknown(Code.TIMEOUT), rejected(Code.TOO_LARGE), unknown(Code.TIMEOUT)]
        return [OK] * len(batch)

    async with broker:
        broker._publisher._send = send
        shop = Shop(broker, Topic("orders"))
        await shop.publish(lines)
    assert calls == [["order-0", "order-1", "order-2", "order-3"], ["order-1", "order-3"]]
    assert shop.confirmed == {"order-0", "order-1", "order-3"}
    assert list(shop.rejected) == ["order-2"]
    assert not shop.unconfirmed


async def test_send_publishes_what_compose_made() -> None:
    topic = Topic[object]("orders")
    async with connect("memory://", {"max_message_bytes": 100}) as broker:
        items = [
            broker.compose(topic, b"a", id="one", key="k", headers={"x": "1"}),
            broker.compose(topic, b"b" * 200, id="two"),
        ]
        ok, refused = await broker.send(items)
        assert ok.ok
        assert refused.fault is not None
        assert refused.fault.code is Code.TOO_LARGE
        with pytest.raises(MessageTooLarge, match="send a reference"):
            await broker.publish(topic, b"b" * 200)
