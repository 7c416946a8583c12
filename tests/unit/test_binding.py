"""Every shape that a handler may have, and a sentence for every shape that it may not."""

from __future__ import annotations

import asyncio
import functools
import inspect
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional

import msgspec
import pytest

from atleastonce import ConfigurationError, Context, Queue
from atleastonce.binding import Binding, bind


class Order(msgspec.Struct):
    n: int


QUEUE: Queue[Any] = Queue("q")
CONTEXT: Any = object()  # handlers only pass it on
BODY = b'{"n":1}'


def run(binding: Binding) -> Any:
    """Call the handler as the processing does."""
    payload = binding.decode(BODY)
    extra = {binding.context: CONTEXT} if binding.context else {}
    result = binding.call(payload, **extra)
    assert inspect.isawaitable(result) is binding.is_async
    return asyncio.run(_await(result)) if binding.is_async else result


async def _await(awaitable: Any) -> Any:
    return await awaitable


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def async_wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


async def plain_async(order: Order) -> Any:
    return order, None


def plain(order: Order) -> Any:
    return order, None


async def context_second(order: Order, ctx: Context) -> Any:
    return order, ctx


async def context_first(ctx: Context, order: Order) -> Any:
    return order, ctx


def context_first_sync(ctx: Context, order: Order) -> Any:
    return order, ctx


def keyword_only(order: Order, *, ctx: Context) -> Any:
    return order, ctx


def optional_context(order: Order, ctx: Context | None = None) -> Any:
    return order, ctx


def typing_optional_context(order: Order, ctx: Optional[Context] = None) -> Any:  # noqa: UP045
    return order, ctx


def annotated_context(order: Order, ctx: Annotated[Context, "why"]) -> Any:
    return order, ctx


def with_defaults(order: Order, retries: int = 3, *, ctx: Context, flag: bool = False) -> Any:
    assert (retries, flag) == (3, False)
    return order, ctx


def with_variadics(order: Order, *args: Any, **kwargs: Any) -> Any:
    assert not args
    assert not kwargs
    return order, None


def positional_only(order: Order, /, ctx: Context) -> Any:
    return order, ctx


class Methods:
    async def method(self, order: Order, ctx: Context) -> Any:
        return order, ctx

    @classmethod
    def of_class(cls, order: Order) -> Any:
        return order, None

    @staticmethod
    async def static(order: Order) -> Any:
        return order, None


class Callables:
    def __call__(self, order: Order, ctx: Context) -> Any:
        return order, ctx


class AsyncCallables:
    async def __call__(self, order: Order) -> Any:
        return order, None


def with_database(database: str, order: Order, ctx: Context) -> Any:
    assert database == "db"
    return order, ctx


async def with_database_async(database: str, order: Order) -> Any:
    assert database == "db"
    return order, None


SHAPES: list[tuple[Callable[..., Any], bool, bool]] = [
    (plain_async, True, False),
    (plain, False, False),
    (context_second, True, True),
    (context_first, True, True),
    (context_first_sync, False, True),
    (keyword_only, False, True),
    (optional_context, False, True),
    (typing_optional_context, False, True),
    (annotated_context, False, True),
    (with_defaults, False, True),
    (with_variadics, False, False),
    (positional_only, False, True),
    (Methods().method, True, True),
    (Methods.of_class, False, False),
    (Methods.static, True, False),
    (Callables(), False, True),
    (AsyncCallables(), True, False),
    (functools.partial(with_database, "db"), False, True),
    (functools.partial(with_database_async, "db"), True, False),
    (functools.partial(functools.partial(with_database_async), "db"), True, False),
    (functools.partial(AsyncCallables()), True, False),
    (wrapped(plain), False, False),
    (wrapped(context_first_sync), False, True),
    (wrapped(plain_async), True, False),
    (wrapped(context_first), True, True),
    (async_wrapped(context_second), True, True),
    (wrapped(async_wrapped(wrapped(context_second))), True, True),
    (functools.lru_cache(plain), False, False),
]


@pytest.mark.parametrize(
    ("handler", "is_async", "wants_context"), SHAPES, ids=lambda value: getattr(value, "__name__", None)
)
def test_every_shape_is_called_with_what_it_asks_for(handler: Any, is_async: bool, wants_context: bool) -> None:
    if isinstance(handler, functools._lru_cache_wrapper):
        handler = functools.wraps(plain)(lambda order: plain(order))
    binding = bind(handler, QUEUE)
    assert binding.is_async is is_async
    assert (binding.context is not None) is wants_context
    assert binding.payload_type is Order
    order, context = run(binding)
    assert order == Order(1)
    assert context is (CONTEXT if wants_context else None)
    assert " at 0x" not in binding.name


def test_a_plain_wrapper_that_does_not_return_the_coroutine_is_still_awaited_once() -> None:
    ran: list[Order] = []

    async def handle(order: Order) -> None:
        ran.append(order)

    @functools.wraps(handle)
    def skips(order: Order) -> None:
        return None  # decides not to call it

    run(bind(skips, QUEUE))
    run(bind(wrapped(handle), QUEUE))
    assert ran == [Order(1)]


def test_without_annotation_the_channel_decides() -> None:
    assert bind(lambda x: x, Queue("q", Order)).payload_type is Order
    assert bind(lambda x: x, QUEUE).payload_type is Any
    assert run(bind(lambda x: x, QUEUE)) == {"n": 1}

    def annotated(order: dict) -> Any:  # type: ignore[type-arg]
        return order

    assert bind(annotated, Queue("q", Order)).payload_type is dict


def generator(order: Order) -> Any:
    yield order


async def async_generator(order: Order) -> Any:
    yield order


@pytest.mark.parametrize(
    "handler",
    [generator, async_generator, wrapped(generator), functools.partial(generator), functools.partial(async_generator)],
)
def test_generators_are_refused(handler: Any) -> None:
    with pytest.raises(
        ConfigurationError, match="generator is a generator; a handler returns when its message is done"
    ):
        bind(handler, QUEUE)


def nothing() -> None: ...
def two(a: Order, b: Order) -> None: ...
def two_contexts(order: Order, a: Context, b: Context) -> None: ...
def only_context(ctx: Context) -> None: ...
def only_default(order: Order | None = None) -> None: ...
def only_variadic(*args: Any, **kwargs: Any) -> None: ...
def keyword_payload(*, order: Order) -> None: ...
def context_positional_only(order: Order, ctx: Context, /) -> None: ...
def batch_context(order: Order, ctx: list[Context]) -> None: ...
def needs_more(order: Order, *, flag: bool) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [nothing, two, two_contexts, only_context, only_default, only_variadic, keyword_payload,
     context_positional_only, batch_context, needs_more, Methods.method],
)  # fmt: skip
def test_other_shapes_are_refused_with_their_signature(handler: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        bind(handler, QUEUE)
    text = str(caught.value)
    assert f"{handler.__qualname__}{inspect.signature(handler)} must take the payload first" in text
    assert "functools.wraps" in text


@pytest.mark.parametrize("handler", [5, None, "handle", Order, object()])
def test_what_is_no_function_is_refused(handler: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no function; decorate an async def or def"):
        bind(handler, QUEUE)


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    class Local(msgspec.Struct):
        n: int

    def local(order: Local) -> None: ...

    def broken(order: Order) -> None: ...

    broken.__annotations__["order"] = "not ( valid"

    def missing(order: Order) -> None: ...

    missing.__annotations__["order"] = "msgspec.NoSuchThing"
    for handler in (local, broken, missing):
        with pytest.raises(
            ConfigurationError, match=r"handler .*: an annotation cannot be resolved \(.*; import or define it"
        ):
            bind(handler, QUEUE)


class Pair(msgspec.Struct, array_like=True):
    left: int
    right: int


UNLIKE: list[tuple[Any, Any, str, str]] = [
    (int, Order, "number", "object"),
    (str, Order, "text", "object"),
    (list[Order], Order, "array", "object"),
    (Pair, Order, "array", "object"),
    (bool, int, "true or false", "number"),
    (Literal["a", 1], dict[str, int], "number or text", "object"),
    (dict, int, "object", "number"),
]


@pytest.mark.parametrize(("wanted", "carried", "form", "other"), UNLIKE)
def test_a_payload_that_no_message_of_the_channel_can_be_is_refused(
    wanted: Any, carried: Any, form: str, other: str
) -> None:
    async def handler(value: Any) -> None: ...

    handler.__annotations__ = {"value": wanted}
    with pytest.raises(ConfigurationError) as error:
        bind(handler, Queue("orders", carried))
    text = str(error.value)
    assert f"(in JSON: {form}), and orders carries " in text
    assert f" ({other}); annotate value as that" in text


LIKE: list[tuple[Any, Any]] = [
    (dict, Order),
    (dict[str, Any], Order),
    (Any, Order),
    (object, Order),
    (bytes, Order),
    (Order | None, Order),
    (Order | list[Order], Order),
    (Order, bytes),
    (Order, Any),
    (float, int),
    (Literal["a"], str),
    (uuid.UUID, str),
]


@pytest.mark.parametrize(("wanted", "carried"), LIKE)
def test_a_handler_may_read_its_channel_in_another_way(wanted: Any, carried: Any) -> None:
    async def handler(value: Any) -> None: ...

    handler.__annotations__ = {"value": wanted}
    assert bind(handler, Queue("orders", carried)).payload_type == wanted


def test_a_list_of_what_the_channel_does_not_carry_is_refused() -> None:
    async def handler(values: list[int]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"values is int \(in JSON: number\), and orders carries Order \("):
        bind(handler, Queue("orders", Order), batch=True)


def test_builtins_whose_parameters_nobody_knows_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="getattr"):
        bind(getattr, QUEUE)


def batch(orders: list[Order]) -> Any:
    return orders


def batch_with_contexts(orders: list[Order], contexts: list[Context]) -> Any:
    return orders, contexts


def bare_list(orders: list) -> Any:  # type: ignore[type-arg]
    return orders


def test_a_batch_handler_takes_a_list() -> None:
    assert bind(batch, QUEUE, batch=True).payload_type is Order
    assert bind(batch_with_contexts, QUEUE, batch=True).context == "contexts"
    assert bind(bare_list, Queue("q", Order), batch=True).payload_type is Order
    assert bind(lambda orders: orders, Queue("q", Order), batch=True).payload_type is Order
    assert bind(batch, QUEUE).payload_type == list[Order], "without batch=True, a list is one message's payload"
    for handler in (plain, optional_context):
        with pytest.raises(ConfigurationError):
            bind(handler, QUEUE, batch=True)
    with pytest.raises(ConfigurationError, match=r"annotate order as a list, like list\[Order\]"):
        bind(plain, QUEUE, batch=True)
