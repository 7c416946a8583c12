"""Inboxes for answers: one topic for all who ask, and for each of them a subscription that its filter and its expiry keep small."""

from __future__ import annotations

from typing import Any, Final

import grpc

from atleastonce.adapters.pubsub import channel as api
from atleastonce.adapters.pubsub import faults
from atleastonce.adapters.pubsub.channel import Link
from atleastonce.adapters.pubsub.config import Config
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
    if not await _made(link, config, "CreateSubscription", wanted):
        await _made(link, config, "CreateTopic", api.Topic(name=config.topic(REPLIES)))
        await _made(link, config, "CreateSubscription", wanted)


async def _made(link: Link, config: Config, call: str, wanted: Any) -> bool:
    """Whether it is there now; not where the topic is missing that it needs."""
    try:
        await link.call(call, wanted, seconds=config.operation_timeout)
    except grpc.RpcError as error:
        code = faults.classify(error).code
        if code is Code.CONFLICT:
            return True
        if code is Code.NOT_FOUND and call == "CreateSubscription":
            return False
        raise faults.as_error(error, "making a subscription for replies") from error
    return True


async def remove(name: str, config: Config, link: Link) -> None:
    """Take inbox ``name`` away."""
    request = api.DeleteSubscriptionRequest(subscription=config.subscription(name))
    await link.call("DeleteSubscription", request, seconds=config.operation_timeout)
