"""Headers, ids and what is refused before any IO."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.channels import Channel, Queue, Topic
from atleastonce.compose import compose, compose_many
from atleastonce.contract import NONE, Ability, Capabilities, Counting, Leasing, Level, Ordering
from atleastonce.errors import ConfigurationError, EncodeError, InvalidMessage
from atleastonce.message import Headers, Message, check_headers, new_id, sizes

NAMES = st.sampled_from(["a", "b", "A", "tenant", "alo-id", "alo-attempt"])
VALUES = st.one_of(st.none(), st.text(), st.binary())
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=12)

PLAIN = Capabilities(delay=NONE, delivery_count=Counting.NONE, lease=Leasing.NONE, order=Ordering.NONE)


@given(FIELDS)
def test_order_and_duplicates_are_kept(fields: list[tuple[str, str | bytes | None]]) -> None:
    headers = Headers(fields)
    assert list(headers.items()) == fields
    assert list(headers) == [name for name, _ in fields]
    assert len(headers) == len(fields)
    assert bool(headers) is bool(fields)
    assert headers == Headers(iter(fields)) == Headers(headers)
    assert hash(headers) == hash(Headers(fields))
    for name in {name for name, _ in fields}:
        assert name in headers
        assert headers.get_all(name) == [value for other, value in fields if other == name]


@given(FIELDS, st.dictionaries(NAMES, VALUES))
def test_set_replaces_every_earlier_value_and_leaves_the_others(
    fields: list[tuple[str, str | bytes | None]], new: dict[str, str | bytes | None]
) -> None:
    before = Headers(fields)
    after = before.set(new)
    assert list(after.items()) == [item for item in fields if item[0] not in new] + list(new.items())
    assert list(before.items()) == fields, "a header list is immutable"


@given(FIELDS)
def test_without_takes_a_prefix_away(fields: list[tuple[str, str | bytes | None]]) -> None:
    assert list(Headers(fields).without("alo-").items()) == [f for f in fields if not f[0].startswith("alo-")]


@given(FIELDS)
def test_size_counts_names_and_values(fields: list[tuple[str, str | bytes | None]]) -> None:
    headers = Headers(fields)
    assert headers.size == sum(len(name) + len(value or "") for name, value in fields)
    assert Message("m", b"12345", b"key", headers).size == 8 + headers.size
    assert Message("m", b"12345", None, headers).size == 5 + headers.size


@given(FIELDS)
def test_sizes_of_a_list_are_those_of_its_messages(fields: list[tuple[str, str | bytes | None]]) -> None:
    messages = [Message("m", b"12345", key, Headers(fields)) for key in (b"key", b"", None)]
    messages.append(Message("m", b"", b"key", Headers(fields).plus("name", "value")))
    counted = sizes(messages)
    assert counted == [message.size for message in messages] == sizes(messages)


def test_the_last_value_wins_and_names_are_case_sensitive() -> None:
    headers = Headers([("a", "1"), ("a", "2"), ("A", "3"), ("null", "x"), ("null", None), ("raw", b"\xff\x41")])
    assert headers.get("a") == "2"
    assert headers.get("A") == "3"
    assert headers.get("null", "default") == "default"
    assert headers.get("raw") == "\ufffdA"
    assert headers.get("absent") is None
    assert Headers({"a": "1"}).get("a") == "1"


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\x00b", "\r\nalo-id: forged", "half \ud800 pair"])
def test_a_dangerous_value_is_refused_by_name(value: str) -> None:
    with pytest.raises(InvalidMessage, match="header 'tenant'") as caught:
        check_headers(Headers([("ok", "fine"), ("tenant", value)]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a:b", "grün", "a\n", "a\r\nb", "\x00", "a" * 129, "tab\t", "[x]", b"bytes", 5, None],
)
def test_a_dangerous_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidMessage, match="header name"):
        check_headers(Headers([(name, "x")]))  # type: ignore[list-item]


@pytest.mark.parametrize("value", [5, 1.5, ["x"], bytearray(b"x"), True])
def test_a_value_is_text_bytes_or_none(value: object) -> None:
    with pytest.raises(InvalidMessage, match=f"the value is a {type(value).__name__}; give text"):
        check_headers(Headers([("a", value)]))  # type: ignore[list-item]


def test_what_every_broker_takes_passes() -> None:
    check_headers(Headers([("a" * 128, "ünïcode ✓ 𝄞"), ("x-b.c_d~!", ""), ("raw", b"\r\n\x00\xff"), ("null", None)]))


def test_ids_are_unique_and_rise_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[str]] = [[] for _ in range(4)]

    def make(into: list[str]) -> None:
        into.extend(new_id() for _ in range(5000))

    threads = [threading.Thread(target=make, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [one for into in found for one in into]
    assert len(set(every)) == len(every)
    assert all(len(one) == 32 and set(one) <= set("0123456789abcdef") for one in every)
    times = [1_000_000, 2_000_000, 1_700_000_000_000_000_000, 4_000_000_000_000_000_000]
    ids = []
    for moment in times:
        monkeypatch.setattr("atleastonce.message.time.time_ns", lambda moment=moment: moment)
        ids.append(new_id())
    assert ids == sorted(ids)


def test_a_forked_child_does_not_give_out_its_parents_ids() -> None:
    code = """
import os
from atleastonce.message import new_id
new_id()  # more are ready
read, write = os.pipe()
if not os.fork():
    os.write(write, "".join(new_id()[12:] for _ in range(100)).encode())
    os._exit(0)
os.wait()
found = os.read(read, 4000).decode()
mine = {new_id()[12:] for _ in range(100)}
assert len(found) == 2000
assert not mine & {found[at : at + 20] for at in range(0, 2000, 20)}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------------- compose


def compose_plain(payload: object = b"", channel: object = None, **options: object) -> Message:
    channel = channel if channel is not None else Queue("q")
    return compose(channel, payload, capabilities=PLAIN, scheme="plain", **options).message  # type: ignore[arg-type]


def test_a_message_is_composed_with_its_id_key_and_content_type() -> None:
    message = compose_plain({"n": 1}, key="k", id="order-1", headers={"tenant": "a"})
    assert (message.id, message.body, message.key) == ("order-1", b'{"n":1}', b"k")
    assert message.headers.items() == (
        ("tenant", "a"),
        ("content-type", "application/json"),
        ("alo-id", "order-1"),
    )
    raw = compose_plain(b"\x00\xff", key=b"\xff")
    assert (raw.body, raw.key, raw.headers.get("content-type")) == (b"\x00\xff", b"\xff", "application/octet-stream")
    assert raw.headers.get("alo-id") == raw.id
    assert compose_plain(b"", key="").key == b""
    assert compose_plain(b"").key is None


def test_ones_own_content_type_stays_however_it_is_written() -> None:
    for name in ("content-type", "Content-Type"):
        message = compose_plain({}, headers={name: "application/x"})
        assert [value for key, value in message.headers.items() if key.lower() == "content-type"] == ["application/x"]


def test_the_headers_of_another_message_may_be_given() -> None:
    assert compose_plain(headers=Headers({"a": "1"})).headers.get("a") == "1"


@pytest.mark.parametrize("name", ["alo-id", "ALO-ID", "Alo-Attempt", "alo-"])
def test_our_prefix_is_ours(name: str) -> None:
    with pytest.raises(InvalidMessage, match="are the library's"):
        compose_plain(headers={name: "x"})


@pytest.mark.parametrize("id", ["", "x" * 257, "a\nb", "ü", "a\x00", "tab\t", 7, b"x"])
def test_a_bad_id_is_refused(id: object) -> None:
    with pytest.raises(InvalidMessage, match="give 1 to 256 printable ASCII characters"):
        compose_plain(id=id)


@pytest.mark.parametrize("key", [5, 1.5, ["k"], "half \udfff"])
def test_a_bad_key_is_refused(key: object) -> None:
    with pytest.raises(InvalidMessage, match="key"):
        compose_plain(key=key)


@pytest.mark.parametrize("headers", [[("a", "b")], "a=b", {"a": 1}, {1: "a"}])
def test_bad_headers_are_refused(headers: object) -> None:
    with pytest.raises(InvalidMessage, match="header"):
        compose_plain(headers=headers)


@pytest.mark.parametrize("channel", ["orders", Channel("orders"), 5])
def test_one_publishes_to_a_queue_or_topic(channel: object) -> None:
    with pytest.raises(ConfigurationError, match=r'write Queue\("name"\) or Topic\("name"\)'):
        compose_plain(channel=channel)


def test_what_does_not_encode_is_refused() -> None:
    with pytest.raises(EncodeError, match="a object does not encode"):
        compose_plain(object())


@given(
    st.lists(st.one_of(st.binary(max_size=3), st.dictionaries(st.text(max_size=2), st.integers(0, 9), max_size=2))),
    st.one_of(st.none(), st.dictionaries(st.sampled_from(["tenant", "Content-Type", "x"]), st.text("abc"))),
)
def test_a_list_is_composed_as_its_messages_are(payloads: list[object], headers: dict[str, str] | None) -> None:
    items = compose_many(Queue("q"), iter(payloads), key=str, headers=headers)
    assert [item.message for item in items] == [
        compose_plain(payload, key=str(payload), id=item.message.id, headers=headers)
        for payload, item in zip(payloads, items, strict=True)
    ]
    assert len({item.message.id for item in items}) == len(items)
    for item in items:
        assert item.message.headers.size == Headers(item.message.headers.items()).size


def test_what_is_wrong_with_one_of_a_list_is_told() -> None:
    with pytest.raises(InvalidMessage, match="id ''"):
        compose_many(Queue("q"), [1, 2], id=lambda n: "" if n == 2 else "x")
    with pytest.raises(InvalidMessage, match="key 2"):
        compose_many(Queue("q"), [1, 2], key=lambda n: n if n == 2 else "x")
    with pytest.raises(InvalidMessage, match="are the library's"):
        compose_many(Queue("q"), [1], headers={"alo-id": "x"})
    with pytest.raises(ConfigurationError, match="publish to a Queue or Topic"):
        compose_many("q", [])  # type: ignore[arg-type]


def test_a_delay_needs_a_broker_that_delays() -> None:
    def one(level: Level, limit: float | None, delay: object) -> float:
        capabilities = Capabilities(
            delay=NONE,
            publish_delay=Ability(level, limit),
            delivery_count=Counting.NONE,
            lease=Leasing.NONE,
            order=Ordering.NONE,
        )
        return compose(Topic("t"), b"", capabilities=capabilities, scheme="x", delay=delay).delay  # type: ignore[arg-type]

    assert one(Level.NATIVE, None, "10m") == 600
    assert one(Level.NATIVE, 900, 900) == 900
    assert one(Level.NONE, None, 0) == 0
    with pytest.raises(ConfigurationError, match="x cannot delay a publish"):
        one(Level.NONE, None, "1s")
    with pytest.raises(ConfigurationError, match="by at most 900 s"):
        one(Level.NATIVE, 900, "15m1s")
    for delay in ("soon", -1, float("nan"), float("inf"), [1], True):
        with pytest.raises(ConfigurationError, match="delay"):
            one(Level.NATIVE, None, delay)


@given(fields=FIELDS)
def test_fields_with_one_more_are_as_if_made_at_once(fields: list[tuple[str, str | bytes | None]]) -> None:
    base = Headers(fields)
    more, whole = base.plus("alo-id", "1"), Headers([*fields, ("alo-id", "1")])
    assert more.size == whole.size
    assert more == whole
    assert hash(more) == hash(whole)
    assert list(more.items()) == list(more.fields()) == [*fields, ("alo-id", "1")]
    assert (more.get("alo-id"), "alo-id" in more, len(more), bool(more)) == ("1", True, len(fields) + 1, True)
    assert more.set({"alo-id": "2"}) == base.without("alo-id").set({"alo-id": "2"})
    assert more.plus("b", "2").items()[-2:] == (("alo-id", "1"), ("b", "2"))
