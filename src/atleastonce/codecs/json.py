"""JSON: msgspec Structs, dataclasses, TypedDicts, dicts, attrs classes, and pydantic models where pydantic is
installed."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from atleastonce.errors import ConfigurationError, DecodeError, EncodeError, ends_process


def _pydantic(cls: Any) -> bool:
    # Asked without importing pydantic: a type can only be its model if somebody imported it already.
    module = sys.modules.get("pydantic")
    return module is not None and isinstance(cls, type) and issubclass(cls, module.BaseModel)


def _validates_itself(cls: Any) -> bool:
    """A pydantic model, or a dataclass of pydantic's: msgspec would fill one in without validating it."""
    return _pydantic(cls) or (dataclasses.is_dataclass(cls) and hasattr(cls, "__pydantic_validator__"))


def json_decoder(payload_type: Any) -> Callable[[bytes], Any]:
    """A function from bytes to ``payload_type`` that raises `DecodeError` and nothing else.

    Raises:
        ConfigurationError: msgspec and pydantic do not know the type.
    """
    try:
        strangers = list(_strangers(msgspec.inspect.type_info(payload_type)))
    except Exception as error:  # noqa: BLE001 - whatever an annotation is made of, it cannot be decoded to
        strangers = [cls for cls in _parts(payload_type) if _validates_itself(cls)]
        if not strangers:  # a union of models is one that msgspec does not know
            raise ConfigurationError(f"{payload_type!r} is no payload type: {error}") from None
    if strangers and all(_validates_itself(cls) for cls in strangers):
        return _guarded(_pydantic_decoder(payload_type))
    if strangers:
        names = ", ".join(sorted({cls.__name__ for cls in strangers if not _validates_itself(cls)}))
        raise ConfigurationError(
            f"{payload_type!r} is no payload type: {names} does not decode from JSON; "
            "use a msgspec Struct, dataclass, TypedDict, pydantic model, dict or bytes"
        )
    try:
        decoder = msgspec.json.Decoder(payload_type)
    except TypeError as error:
        raise ConfigurationError(f"{payload_type!r} is no payload type: {error}") from None
    return _guarded(decoder.decode)


def _pydantic_decoder(payload_type: Any) -> Callable[[bytes], Any]:
    """For a model, for what has models in it (``list[Model]``, ``Model | None``), and for a Struct with models in it."""
    module: Any = sys.modules["pydantic"]
    decode: Callable[[bytes], Any]
    try:
        decode = module.TypeAdapter(payload_type).validate_json
    except module.errors.PydanticUserError:  # it knows no Structs
        try:
            decode = msgspec.json.Decoder(payload_type, dec_hook=_decode_model).decode
        except TypeError as error:
            raise ConfigurationError(f"{payload_type!r} is no payload type: {error}") from None
    return decode


def _decode_model(cls: Any, value: Any) -> Any:
    # As JSON again: pydantic takes a date from JSON's text where it would not take it from Python's.
    return cls.model_validate_json(msgspec.json.encode(value))


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from _parts(part)


def _strangers(info: Any, seen: set[Any] | None = None) -> Iterator[Any]:
    """The classes in ``info`` that msgspec only knows by name, and would never decode to."""
    seen = set() if seen is None else seen
    if isinstance(info, msgspec.inspect.CustomType | msgspec.inspect.DataclassType):
        cls = info.cls
        if isinstance(info, msgspec.inspect.CustomType) or _validates_itself(cls):
            if cls is not object:  # everything is one
                yield cls
            return
    if isinstance(info, tuple | list):
        for part in info:
            yield from _strangers(part, seen)
    elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field) and id(info) not in seen:
        seen.add(id(info))  # types may refer to themselves
        for name in info.__struct_fields__:
            if name not in ("default", "default_factory"):
                yield from _strangers(getattr(info, name), seen)


def _guarded(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def guarded(body: bytes) -> Any:
        try:
            return decode(body)
        except MemoryError:  # says nothing about the body, and may pass
            raise
        except BaseException as error:  # a validator of the user's may raise anything
            if ends_process(error):
                raise
            raise DecodeError(f"{type(error).__name__}: {error}") from error

    return guarded


def json_encode(payload: Any) -> bytes:
    """``payload`` as JSON.

    Raises:
        EncodeError: names the type that has no JSON form.
    """
    try:
        return _ENCODER.encode(payload)
    except MemoryError:
        raise
    except Exception as error:  # a serializer of the user's may raise anything
        raise EncodeError(f"a {type(payload).__name__} does not encode to JSON: {error}") from error


def _encode_model(value: Any) -> msgspec.Raw:
    if _pydantic(type(value)):
        return msgspec.Raw(value.model_dump_json().encode())
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


_ENCODER = msgspec.json.Encoder(enc_hook=_encode_model)
