"""From a handler's signature to how it is called: which parameter is the payload, of what type, and whether it wants
a Context."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from atleastonce.channels import Channel
from atleastonce.codecs import Decoder, decoder_for
from atleastonce.context import Context
from atleastonce.errors import ConfigurationError


class Binding(msgspec.Struct, frozen=True):
    """How a handler is called.

    Attributes:
        call: the handler.
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
    name = f"{getattr(handler, '__module__', '?')}.{getattr(handler, '__qualname__', repr(handler))}"
    if not callable(handler):
        raise ConfigurationError(f"{name} is not callable; decorate a function")
    function = handler if inspect.isroutine(handler) else type(handler).__call__
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"handler {name} is a generator; a handler returns when its message is done")
    parameters = list(inspect.signature(handler).parameters.values())
    hints = _hints(function, name)
    wanted = list[Context] if batch else Context
    context = [p for p in parameters if hints.get(p.name) == wanted]
    rest = [p for p in parameters if p not in context and p.default is p.empty and p.kind not in _VARIADIC]
    if len(context) > 1 or len(rest) != 1 or rest[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise ConfigurationError(
            f"handler {name}{inspect.signature(handler)} must take the payload first and, if it wants one, a "
            f"{'list[Context]' if batch else 'Context'} by annotation"
        )
    annotation = hints.get(rest[0].name, _MISSING)
    payload_type = _payload_type(annotation, channel, name, rest[0].name, batch=batch)
    try:
        decode = decoder_for(payload_type)
    except ConfigurationError as error:
        raise ConfigurationError(f"handler {name}, parameter {rest[0].name}: {error}") from None
    is_async = inspect.iscoroutinefunction(function)
    return Binding(handler, name, is_async, payload_type, decode, context[0].name if context else None)


_MISSING = object()
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _hints(function: Any, name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigurationError(
            f"handler {name}: an annotation cannot be resolved ({error}); import or define it"
        ) from None


def _payload_type(annotation: Any, channel: Channel[Any], name: str, parameter: str, *, batch: bool) -> Any:
    if batch:
        if typing.get_origin(annotation) is list:
            return typing.get_args(annotation)[0]
        if annotation is not _MISSING and annotation is not list:
            raise ConfigurationError(f"batch handler {name}: annotate {parameter} as a list, like list[Order]")
    elif annotation is not _MISSING:
        return annotation
    return channel.type if channel.type is not None else Any
