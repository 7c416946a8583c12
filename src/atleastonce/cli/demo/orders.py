"""The demo's input: orders as JSON lines, each checked before anything is published."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from atleastonce.errors import ConfigurationError

SUPPLIED = Path(__file__).with_name("orders.jsonl")
"""10 000 orders of a tea shop; `examples/make_orders.py` made them."""

_MAX_LINE = 1 << 20


class Item(msgspec.Struct, frozen=True):
    """One position of an order; ``price`` of one, in euros."""

    sku: str
    quantity: Annotated[int, msgspec.Meta(ge=1)] = 1
    price: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Order(msgspec.Struct, frozen=True):
    """One order. Fields that are not named here may be there, and travel along."""

    order_id: int | str
    customer_id: str
    total: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    status: Literal["placed", "cancelled"] = "placed"
    country: str = ""
    items: list[Item] = []


class Line(msgspec.Struct, frozen=True):
    """One good line: what is published, under which id and key."""

    message_id: str
    key: str
    body: bytes


class Orders(msgspec.Struct, frozen=True):
    """What a file holds.

    Attributes:
        lines: the good ones, in order.
        problems: one sentence for each bad one, beginning with file and line number.
    """

    lines: list[Line]
    problems: list[str]


def read_orders(path: Path) -> Orders:
    """Read and check a file of JSON lines. Empty lines are skipped, bad ones are named and left out.

    Raises:
        ConfigurationError: the file cannot be read, or holds no order.
    """
    try:
        with path.open("rb") as file:
            orders = check_orders(file, path.name)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}; give a file of JSON lines with --input") from None
    if not orders.lines:
        first = f" ({orders.problems[0]})" if orders.problems else ""
        raise ConfigurationError(
            f'{path} holds no order{first}; write one JSON object per line, like {{"order_id": 1, "customer_id": "c-1", '
            f'"total": 9.99}}'
        )
    return orders


def check_orders(lines: Iterable[bytes], name: str) -> Orders:
    """Check lines; ``name`` stands before the line number in each problem. A byte order mark, as editors write, is no order."""
    decode = msgspec.json.Decoder(Order).decode
    good: list[Line] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        body = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
        if not body:
            continue
        try:
            if len(body) > _MAX_LINE:
                raise ValueError(f"the line has {len(body)} bytes; at most {_MAX_LINE} are taken")
            order = decode(body)
            message_id = identity(order)
            if message_id in seen:
                raise ValueError(f"order_id {order.order_id} is on line {seen[message_id]} already")
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            problems.append(f"{name}:{number}: {error}")
            continue
        seen[message_id] = number
        good.append(Line(message_id, order.customer_id, body))
    return Orders(good, problems)


def identity(order: Order) -> str:
    """The message id of an order: natural, so that whoever publishes the order twice publishes one message twice."""
    text = f"order-{order.order_id}"
    if not (text.isascii() and text.isprintable() and len(text) <= 200):
        raise ValueError("order_id must be a number, or at most 190 printable ASCII characters")
    return text
