"""Inboxes for answers: one topic for all who ask, and for each of them a subscription that its filter and its expiry keep small."""

from __future__ import annotations

import enum
import logging
from typing import Any, Final

import grpc

from atleastonce.adapters.pubsub import channel as api
from atleastonce.adapters.pubsub import faults
from atleastonce.adapters.pubsub.channel import Link
from atleastonce.adapters.pubsub.config import Config
from atleastonce.adapters.pubsub.topology import DELETED_TOPIC
from atleastonce.contract import Code

REPLIES: Final = "alo.replies"
"""The topic of all answers."""
INBOX: Final = "alo_inbox"
"""The attribute that says whose an answer is; a word that a filter takes as it is."""
PREFIX: Final = "alo.reply."

_EXPIRES: Final = 24 * 3600
"""Seconds without its reader after which Pub/Sub removes a subscription; it takes no fewer."""
_RETENTION: Final = 600
"""Seconds that an answer waits for its reader; no fewer are taken."""
_DEADLINE: Final = 60

log = logging.getLogger("atleastonce.pubsub")


async def keep(name: str, config: Config, link: Link) -> None:
    """Make inbox ``name`` exist. Being read keeps it."""
    wanted = api.Subscription(
        name=config.subscription(name),
        topic=config.topic(REPLIES),
        ack_deadline_seconds=_DEADLINE,
        filter=f'attributes.{INBOX} = "{name}"',
    )
    wanted.message_retention_duration.seconds = _RETENTION
    wanted.expiration_policy.ttl.seconds = _EXPIRES
    found = await _made(link, config, "CreateSubscription", wanted)
    if found is _Found.THERE and await _orphaned(name, config, link):
        log.warning("the topic of replies was deleted; making it and inbox %s again", name)
        await remove(name, config, link)
        found = await _made(link, config, "CreateSubscription", wanted)
    if found is _Found.NO_TOPIC:
        await _made(link, config, "CreateTopic", api.Topic(name=config.topic(REPLIES)))
        await _made(link, config, "CreateSubscription", wanted)


class _Found(enum.Enum):
    """What became of an attempt to make something."""

    MADE = enum.auto()
    THERE = enum.auto()
    NO_TOPIC = enum.auto()


async def _orphaned(name: str, config: Config, link: Link) -> bool:
    """Whether the inbox is there, and its topic is not the one that answers go to: it was deleted, and perhaps made again by
    somebody since. A subscription cannot get another one, and nothing would ever come."""
    request = api.GetSubscriptionRequest(subscription=config.subscription(name))
    try:
        found = await link.call("GetSubscription", request, seconds=config.operation_timeout)
    except grpc.RpcError as error:
        code = faults.classify(error).code
        if code in (Code.PERMISSION, Code.NOT_FOUND):  # who may not look takes it to be as it was made
            return False
        raise faults.as_error(error, "looking at a subscription for replies") from error
    return bool(found.topic == DELETED_TOPIC)


async def _made(link: Link, config: Config, call: str, wanted: Any) -> _Found:
    try:
        await link.call(call, wanted, seconds=config.operation_timeout)
    except grpc.RpcError as error:
        code = faults.classify(error).code
        if code is Code.CONFLICT:
            return _Found.THERE
        if code is Code.NOT_FOUND and call == "CreateSubscription":
            return _Found.NO_TOPIC
        raise faults.as_error(error, "making a subscription for replies") from error
    return _Found.MADE


async def remove(name: str, config: Config, link: Link) -> None:
    """Take inbox ``name`` away."""
    request = api.DeleteSubscriptionRequest(subscription=config.subscription(name))
    await link.call("DeleteSubscription", request, seconds=config.operation_timeout)
