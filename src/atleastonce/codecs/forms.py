"""What a type looks like as JSON: enough to see that one type can never be read from another one's."""

from __future__ import annotations

from typing import Any

import msgspec

_FORMS: dict[str, tuple[type, ...]] = {
    "number": (msgspec.inspect.IntType, msgspec.inspect.FloatType),
    "text": (
        msgspec.inspect.StrType,
        msgspec.inspect.DateTimeType,
        msgspec.inspect.DateType,
        msgspec.inspect.TimeType,
        msgspec.inspect.UUIDType,
    ),
    "array": (msgspec.inspect.CollectionType, msgspec.inspect.TupleType, msgspec.inspect.NamedTupleType),
    "object": (msgspec.inspect.DataclassType, msgspec.inspect.TypedDictType, msgspec.inspect.DictType),
    "true or false": (msgspec.inspect.BoolType,),
    "null": (msgspec.inspect.NoneType,),
}


def forms(payload_type: Any) -> frozenset[str] | None:
    """The forms that JSON of ``payload_type`` may have, in words ("object", "number"); None where it may have any, or nobody
    can tell."""
    if payload_type is bytes:  # the body itself, whatever it is
        return None
    try:
        return _forms(msgspec.inspect.type_info(payload_type))
    except Exception:  # noqa: BLE001 - whatever an annotation is made of; what cannot be decoded to is told elsewhere
        return None


def _forms(info: msgspec.inspect.Type) -> frozenset[str] | None:
    if isinstance(info, msgspec.inspect.UnionType):
        found = [_forms(each) for each in info.types]
        return None if None in found else frozenset().union(*(each for each in found if each is not None))
    if isinstance(info, msgspec.inspect.LiteralType):
        return frozenset("text" if isinstance(value, str) else "number" for value in info.values)
    if isinstance(info, msgspec.inspect.StructType):
        return frozenset({"array" if info.array_like else "object"})
    for form, kinds in _FORMS.items():
        if isinstance(info, kinds):
            return frozenset({form})
    return None
