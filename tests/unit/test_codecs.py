"""From payloads to bytes and back: what decodes, what is refused at registration, and which errors come out."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import enum
import subprocess
import sys
import typing
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atleastonce import Queue
from atleastonce.binding import bind
from atleastonce.codecs import decoder_for, encode
from atleastonce.errors import ConfigurationError, DecodeError, EncodeError


class Struct(msgspec.Struct):
    n: int
    when: dt.datetime | None = None


@dataclasses.dataclass
class Data:
    n: int


class Typed(TypedDict):
    n: int


class Model(pydantic.BaseModel):
    n: int


class Other(pydantic.BaseModel):
    text: str


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    day: dt.date


@pydantic.dataclasses.dataclass
class Checked:
    n: int

    @pydantic.field_validator("n")
    @classmethod
    def positive(cls, value: int) -> int:
        if value <= 0:
            raise ValueError("not positive")
        return value


class Mixed(msgspec.Struct):
    model: Model
    days: list[Strict] = []


class Tree(msgspec.Struct):
    children: list[Tree] = []


class Color(enum.Enum):
    RED = "red"


class Stranger:
    pass


class Raises(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        raise KeyError("anything")


ROUND_TRIPS = [
    (Struct, Struct(1, dt.datetime(2026, 1, 2, tzinfo=dt.UTC))),
    (Data, Data(2)),
    (Typed, {"n": 3}),
    (dict, {"a": [1, None]}),
    (dict[str, int], {"a": 1}),
    (list, [1, "x"]),
    (list[Struct], [Struct(1), Struct(2)]),
    (Any, {"a": 1.5}),
    (object, {"a": 1.5}),
    (str, "ünï"),
    (int, -7),
    (int | str, "x"),
    (Color, Color.RED),
    (Literal["a", "b"], "b"),
    (uuid.UUID, uuid.UUID(int=5)),
    (Decimal, Decimal("1.10")),
    (Annotated[int, msgspec.Meta(ge=0)], 4),
    (Tree, Tree([Tree(), Tree([Tree()])])),
    (Model, Model(n=4)),
    (list[Model], [Model(n=4), Model(n=5)]),
    (Model | None, Model(n=6)),
    (Model | Other, Other(text="x")),
    (list[Model | Other], [Other(text="x"), Model(n=1)]),
    (Strict, Strict(day=dt.date(2026, 1, 2))),
    (Checked, Checked(7)),
    (Mixed, Mixed(Model(n=8), [Strict(day=dt.date(2026, 1, 2))])),
    (bytes, b"\x00\xff"),
]


@pytest.mark.parametrize(("kind", "value"), ROUND_TRIPS, ids=[str(kind) for kind, _ in ROUND_TRIPS])
def test_what_is_encoded_decodes_to_its_equal(kind: Any, value: Any) -> None:
    body, content_type = encode(value)
    assert isinstance(body, bytes)
    assert content_type == ("application/octet-stream" if kind is bytes else "application/json")
    decoded = decoder_for(kind)(body)
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize("value", [b"\x00", bytearray(b"\x00"), memoryview(b"\x00")])
def test_bytes_are_not_touched(value: bytes | bytearray | memoryview) -> None:
    assert encode(value) == (b"\x00", "application/octet-stream")


TEXT = st.text(st.characters(codec="utf-8"))
LEAVES = st.none() | st.booleans() | TEXT | st.integers(-(2**63), 2**64 - 1)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


@given(JSON)
@settings(max_examples=60)
def test_any_json_comes_back(value: Any) -> None:
    assert decoder_for(Any)(encode(value)[0]) == value


@given(st.binary(max_size=60))
@settings(max_examples=40)
@pytest.mark.parametrize("kind", [Any, dict, Struct, Data, Typed, list[int], Model, list[Model], Checked, Mixed])
def test_decoding_anything_raises_decode_error_or_nothing(kind: Any, body: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decoder_for(kind)(body)


BROKEN = {
    "empty": b"",
    "cut": b'{"n":1',
    "trailing": b'{"n":1} x',
    "not json": b"nope",
    "byte order mark": b'\xef\xbb\xbf{"n":1}',
    "utf-16": '{"n":1}'.encode("utf-16"),
    "bad utf-8": b'{"n":"\xff\xfe"}',
    "bad utf-8 in a field nobody reads": b'{"n":"x","\xff":1}',
    "wrong type": b'{"n":"one"}',
    "no such field": b'{"m":1}',
    "null": b"null",
    "deep list": b"[" * 200_000,
    "deep object": b'{"n":' * 200_000,
    "huge integer": b'{"n":' + b"9" * 10_000 + b"}",
    "huge float": b'{"n":1e999}',
    "nan": b'{"n":NaN}',
}  # fmt: skip


@pytest.mark.parametrize("kind", [Struct, Data, Typed, Model, list[Model], Checked, Mixed], ids=str)
@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_a_broken_body_is_a_decode_error(kind: Any, body: bytes) -> None:
    with pytest.raises(DecodeError):
        decoder_for(kind)(body)


@pytest.mark.parametrize("name", ["deep list", "deep object", "bad utf-8", "cut", "empty", "huge float"])
def test_a_broken_body_is_a_decode_error_for_any_too(name: str) -> None:
    for kind in (Any, dict, list):
        with pytest.raises(DecodeError):
            decoder_for(kind)(BROKEN[name])


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit])
def test_a_validator_may_raise_what_looks_like_the_end_of_a_task(error: type[BaseException]) -> None:
    with pytest.raises(DecodeError, match=error.__name__):
        decoder_for(_ends_in(error))(b'{"n":1}')


def test_a_validator_that_ends_the_process_is_let_through() -> None:
    with pytest.raises(SystemExit):
        decoder_for(_ends_in(SystemExit))(b'{"n":1}')


def _ends_in(error: type[BaseException]) -> Any:
    class Ends(msgspec.Struct):
        n: int

        def __post_init__(self) -> None:
            raise error

    return Ends


def test_a_validator_may_raise_anything() -> None:
    with pytest.raises(DecodeError, match="KeyError: 'anything'"):
        decoder_for(Raises)(b'{"n":1}')
    with pytest.raises(DecodeError, match="not positive"):
        decoder_for(Checked)(b'{"n":0}')


STRANGE = [
    Stranger,
    list[Stranger],
    dict[str, Stranger],
    Stranger | None,
    complex,
    typing.Callable,
    print,
    5,
    "Struct",
    Model | Stranger,
    list[int] | set[int],
]


@pytest.mark.parametrize("kind", STRANGE, ids=str)
def test_what_no_codec_decodes_to_is_refused_at_registration(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no payload type") as caught:
        decoder_for(kind)
    assert "\n" not in str(caught.value)


def test_the_refusal_names_handler_and_parameter() -> None:
    def handle(order: Stranger) -> None: ...

    with pytest.raises(ConfigurationError, match=r"handler .*handle, parameter order: .*Stranger.* is no payload type"):
        bind(handle, Queue("q"))
    with pytest.raises(ConfigurationError, match=r"handler .*<lambda>, parameter x: .*Stranger"):
        bind(lambda x: x, Queue("q", Stranger))


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


class BadModel(pydantic.BaseModel):
    n: int

    @pydantic.field_serializer("n")
    def fail(self, value: int) -> int:
        raise KeyError("anything")


UNENCODABLE = [Stranger(), {"a": Stranger()}, {(1, 2): 3}, "half \ud800", CYCLE, BadModel(n=1), 1j, print]


@pytest.mark.parametrize("payload", UNENCODABLE, ids=lambda payload: type(payload).__name__)
def test_what_has_no_encoding_is_named(payload: Any) -> None:
    with pytest.raises(EncodeError, match=f"^a {type(payload).__name__} does not encode to JSON"):
        encode(payload)


def test_models_inside_other_payloads_are_encoded() -> None:
    assert encode({"a": [Model(n=1)], "b": Data(2)})[0] == b'{"a":[{"n":1}],"b":{"n":2}}'


def test_nothing_of_ours_imports_pydantic() -> None:
    code = (
        "import sys, atleastonce\n"
        "from atleastonce.codecs import decoder_for, encode\n"
        "import msgspec, dataclasses\n"
        "@dataclasses.dataclass\n"
        "class D: n: int\n"
        "assert decoder_for(D)(encode(D(1))[0]) == D(1)\n"
        "decoder_for(list[D]); decoder_for(dict)\n"
        "try: encode(object())\n"
        "except atleastonce.EncodeError: pass\n"
        "try: decoder_for(complex)\n"
        "except atleastonce.ConfigurationError: pass\n"
        "assert 'pydantic' not in sys.modules, 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
