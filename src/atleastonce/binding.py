"""From a handler's signature to how it is called: which parameter is the payload, of what type, and whether it wants
a Context."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from atleastonce.channels import Channel
from atleastonce.codecs import Decoder, decoder_for
from atleastonce.codecs.forms import forms
from atleastonce.context import Context
from atleastonce.errors import ConfigurationError


class Binding(msgspec.Struct, frozen=True):
    """How a handler is called.

    Attributes:
        call: the handler, called with the payload first and the Context by its name.
        name: for people: ``module.function``.
        is_async: whether it is ``async def``; decided here, once.
        payload_type: what a body decodes to; for a batch handler, what each does.
        decode: bytes to that type, raising `DecodeError` only.
        context: the name of the parameter that wants the Context (a batch handler: list[Context]); None if there is none.
    """

    call: Callable[..., Any]
    name: str
    is_async: bool
    payload_type: Any
    decode: Decoder
    context: str | None


def bind(handler: Callable[..., Any], channel: Channel[Any], *, batch: bool = False) -> Binding:
    """Read the handler's signature.

    Raises:
        ConfigurationError: names the handler, the parameter and what to write instead.
    """
    if isinstance(handler, type) or not callable(handler):
        raise ConfigurationError(f"{handler!r} is no function; decorate an async def or def")
    function = _function(handler)
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(handler).__qualname__)}"
    inner = inspect.unwrap(function)
    if any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in (function, inner)):
        raise ConfigurationError(f"handler {name} is a generator; a handler returns when its message is done")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"handler {name}: its parameters cannot be told ({error}); wrap it in a def") from None
    hints = _hints(inner, name)
    wanted = list[Context] if batch else Context
    parameters = list(signature.parameters.values())
    context = [p for p in parameters if _bare(hints.get(p.name)) == wanted]
    rest = [p for p in parameters if p not in context and p.default is p.empty and p.kind not in _VARIADIC]
    if (
        len(context) > 1
        or len(rest) != 1
        or rest[0].kind is inspect.Parameter.KEYWORD_ONLY
        or (context and context[0].kind is inspect.Parameter.POSITIONAL_ONLY)
    ):
        raise ConfigurationError(
            f"handler {name}{signature} must take the payload first and, if it wants one, a "
            f"{'list[Context]' if batch else 'Context'} by annotation; a decorator around it needs functools.wraps"
        )
    payload = rest[0]
    payload_type = _payload_type(hints.get(payload.name, _MISSING), channel, name, payload.name, batch=batch)
    _refuse_unlike(payload_type, channel, name, payload.name)
    try:
        decode = decoder_for(payload_type)
    except ConfigurationError as error:
        raise ConfigurationError(f"handler {name}, parameter {payload.name}: {error}") from None
    call = handler if payload is parameters[0] else _by_name(handler, payload.name)
    is_async = inspect.iscoroutinefunction(function)
    if not is_async and inspect.iscoroutinefunction(inner):
        # A plain function around an async one mostly returns its coroutine: on a thread, that would never run.
        call, is_async = _awaited(call), True
    return Binding(call, name, is_async, payload_type, decode, context[0].name if context else None)


_MISSING = object()
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _function(handler: Any) -> Any:
    """The function whose code runs, behind partials and callable objects."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler if inspect.isroutine(handler) else type(handler).__call__


def _by_name(handler: Callable[..., Any], payload: str) -> Callable[..., Any]:
    def call(value: Any, **extra: Any) -> Any:
        return handler(**{payload: value}, **extra)

    return call


def _awaited(handler: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **extra: Any) -> Any:
        result = handler(*args, **extra)
        return await result if inspect.isawaitable(result) else result

    return call


def _hints(function: Any, name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # noqa: BLE001 - an annotation may be any expression, postponed
        raise ConfigurationError(
            f"handler {name}: an annotation cannot be resolved ({error}); import or define it at the module's top"
        ) from None


def _bare(hint: Any) -> Any:
    """``hint`` without ``Annotated`` and ``| None``."""
    if typing.get_origin(hint) is typing.Annotated:
        return _bare(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        return _bare(members[0]) if len(members) == 1 else hint
    return hint


def _payload_type(annotation: Any, channel: Channel[Any], name: str, parameter: str, *, batch: bool) -> Any:
    if batch:
        if typing.get_origin(annotation) is list:
            return typing.get_args(annotation)[0]
        if annotation is not _MISSING and annotation is not list:
            raise ConfigurationError(f"batch handler {name}: annotate {parameter} as a list, like list[Order]")
    elif annotation is not _MISSING:
        return annotation
    return channel.type if channel.type is not None else Any


def _refuse_unlike(payload_type: Any, channel: Channel[Any], name: str, parameter: str) -> None:
    """A handler may read less of a message than its channel's type has, or something else of the same form. Where not even
    the form fits, everything would be a dead letter."""
    if channel.type is None or payload_type is channel.type:
        return
    wanted, carried = forms(payload_type), forms(channel.type)
    if wanted is None or carried is None or wanted & carried:
        return
    raise ConfigurationError(
        f"handler {name}: {parameter} is {_type_name(payload_type)} (in JSON: {_words(wanted)}), and {channel.name} carries "
        f"{_type_name(channel.type)} ({_words(carried)}); annotate {parameter} as that, or leave the annotation away"
    )


def _words(names: frozenset[str]) -> str:
    return " or ".join(sorted(names))


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else repr(kind)
