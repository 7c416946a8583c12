"""What a topology comes to: which topics and subscriptions, with which fields. Asks nobody."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format

from atleastonce.adapters.pubsub.config import Config
from atleastonce.adapters.pubsub.topology import plan
from atleastonce.contract import Resource, Topology


def describe(wanted: Topology, config: Config) -> list[Resource]:
    """See `Describes.describe`. Names are those within the project; settings are the API's fields."""
    made = plan(wanted, config)
    found = [
        Resource("topic", _short(name), _fields(topic), shown=made.shown[name]) for name, topic in made.topics.items()
    ]
    for name, subscription in made.subscriptions.items():
        fields = _fields(subscription)
        joins = {"topic": _short(fields.pop("topic"))}
        net = fields.get("dead_letter_policy", {}).pop("dead_letter_topic", "")
        if net:
            joins["dead-letter"] = _short(net)
        found.append(Resource("subscription", _short(name), fields, joins, shown=made.shown[name]))
    return found


def _fields(message: Any) -> dict[str, Any]:
    """What is set, as the API's JSON: durations are text like ``604800s``."""
    fields: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    fields.pop("name", None)
    return fields


def _short(name: str) -> str:
    return name.rpartition("/")[2]
