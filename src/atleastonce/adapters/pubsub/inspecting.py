"""What subscriptions are set to, and whether Pub/Sub may move what falls into their nets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import grpc

from atleastonce.adapters.pubsub import channel as api
from atleastonce.adapters.pubsub import faults
from atleastonce.adapters.pubsub.channel import Link
from atleastonce.adapters.pubsub.config import Config
from atleastonce.adapters.pubsub.declaring import AGENT, PUBLISH, SUBSCRIBE, grants_agent
from atleastonce.adapters.pubsub.topology import Plan
from atleastonce.contract import Code, Fact, Trait

_AT_ONCE: Final = 16


async def inspect(link: Link, plan: Plan, config: Config) -> list[Fact]:
    """See `Inspects.inspect`."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def call(name: str, request: Any) -> Any:
        try:
            async with room:
                return await link.call(name, request, seconds=config.operation_timeout)
        except grpc.RpcError as error:
            fault = faults.classify(error)
            if fault.retryable and fault.code is not Code.NOT_FOUND:
                raise faults.as_error(error, "looking at subscriptions") from error
            return None  # missing, or not to be asked: emulators know no policies

    async def subscription(name: str) -> list[Fact]:
        found = await call("GetSubscription", api.GetSubscriptionRequest(subscription=name))
        if found is None:
            return []
        shown = plan.shown[name]
        facts = list(subscription_facts(shown, found, {config.topic(each): each for each in plan.shown.values()}))
        net = found.dead_letter_policy.dead_letter_topic
        if net and config.tls:  # else it is an emulator, which moves what it likes
            for resource, roles, role in ((net, PUBLISH, "publisher"), (name, SUBSCRIBE, "subscriber")):
                policy = await call("GetIamPolicy", api.GetIamPolicyRequest(resource=resource))
                facts += net_facts(shown, policy, roles, role, resource)
        return facts

    each = await asyncio.gather(*map(subscription, plan.subscriptions))
    return [fact for facts in each for fact in facts]


def subscription_facts(name: str, found: Any, called: dict[str, str]) -> Iterator[Fact]:
    """What ``found`` says. ``called``: our names of topics, by Pub/Sub's."""
    if kept := found.message_retention_duration.seconds:
        yield Fact(name, Trait.RETENTION, "message_retention_duration", f"{kept}s", kept)
    net = found.dead_letter_policy
    if net.dead_letter_topic:
        most = net.max_delivery_attempts or 5  # unset: 5 (cloud.google.com/pubsub/docs/handling-failures)
        where = called.get(net.dead_letter_topic, net.dead_letter_topic)
        yield Fact(name, Trait.NET, "max_delivery_attempts", str(most), most, where)
    if idle := found.expiration_policy.ttl.seconds:
        yield Fact(name, Trait.VANISHES, "expiration_policy", f"{idle}s", idle)


def net_facts(name: str, policy: Any, roles: frozenset[str], role: str, resource: str) -> Iterator[Fact]:
    """That Pub/Sub's own agent lacks ``role``, as far as ``policy`` (None: not to be read) shows. A role that the whole project
    grants it is not seen there."""
    if policy is not None and not grants_agent(policy, roles):
        yield Fact(
            name,
            Trait.NET_POWERLESS,
            "iam",
            f"roles/pubsub.{role} on {resource.rpartition('/')[2]}",
            detail=f"roles/pubsub.{role} to service-PROJECT_NUMBER{AGENT}, there or in the project",
        )
