"""Pub/Sub topics and subscriptions, with ``hashicorp/google``; and what lets Pub/Sub itself move dead letters."""

from __future__ import annotations

from typing import Any, Final

from atleastonce.topology.declared import Declared
from atleastonce.topology.terraform.blocks import Blocks, literal

_AGENT: Final = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-pubsub.iam.gserviceaccount.com"
_PUBLISHER, _SUBSCRIBER = "roles/pubsub.publisher", "roles/pubsub.subscriber"


def google(declared: Declared, blocks: Blocks) -> list[str]:
    """Resources of ``hashicorp/google``. Its arguments are the API's fields."""
    project = declared.server["project"]
    for topic in declared.of_kind("topic"):
        body = {"name": topic.name, "project": project, **_blocks(topic.settings)}
        blocks.add("google_pubsub_topic", topic.name, body)
    for subscription in declared.of_kind("subscription"):
        topic_at = blocks.address("google_pubsub_topic", subscription.joins["topic"])
        body = {"name": subscription.name, "project": project, "topic": f"${{{topic_at}.id}}"}
        body |= _blocks(subscription.settings)
        if "expiration_policy" in subscription.settings:  # none at all would be 31 days
            body["expiration_policy"] = [{"ttl": subscription.settings["expiration_policy"].get("ttl", "")}]
        net = subscription.joins.get("dead-letter")
        if net is not None:
            below = blocks.address("google_pubsub_topic", net)
            body["dead_letter_policy"] = [
                {**subscription.settings["dead_letter_policy"], "dead_letter_topic": f"${{{below}.id}}"}
            ]
        address = blocks.add("google_pubsub_subscription", subscription.name, body)
        if net is not None:
            _let_move(blocks, project, subscription.name, address, net)
    return []


def _let_move(blocks: Blocks, project: str, subscription: str, address: str, net: str) -> None:
    """Without these roles Pub/Sub goes on delivering what it should have moved to the dead letters."""
    blocks.data = {"google_project": {"this": {"project_id": project}}}
    if blocks.address("google_pubsub_topic_iam_member", net) is None:
        topic = blocks.address("google_pubsub_topic", net)
        body = {"project": project, "topic": f"${{{topic}.name}}", "role": _PUBLISHER, "member": _AGENT}
        blocks.add("google_pubsub_topic_iam_member", net, body, keep=False)
    body = {"project": project, "subscription": f"${{{address}.name}}", "role": _SUBSCRIBER, "member": _AGENT}
    blocks.add("google_pubsub_subscription_iam_member", subscription, body, keep=False)


def _blocks(settings: Any) -> dict[str, Any]:
    """Fields as arguments: a nested message is a block, of which there is one; labels are a map."""
    return {
        name: [literal(value)] if isinstance(value, dict) and name != "labels" else literal(value)
        for name, value in settings.items()
    }
