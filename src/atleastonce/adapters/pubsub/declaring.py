"""Making topics and subscriptions, or only looking; and removing them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import grpc

from atleastonce.adapters.pubsub import channel as api
from atleastonce.adapters.pubsub import faults
from atleastonce.adapters.pubsub.channel import Link
from atleastonce.adapters.pubsub.config import Config
from atleastonce.adapters.pubsub.topology import Plan, compare, compare_topic
from atleastonce.contract import Code, Drift
from atleastonce.errors import ConfigurationError

log = logging.getLogger("atleastonce.pubsub")

_AT_ONCE: Final = 16  # administrator requests: more run into the service's rate limit of a project
AGENT: Final = "@gcp-sa-pubsub.iam.gserviceaccount.com"
PUBLISH: Final = frozenset({"roles/pubsub.publisher", "roles/pubsub.editor", "roles/pubsub.admin"})
SUBSCRIBE: Final = frozenset({"roles/pubsub.subscriber", "roles/pubsub.editor", "roles/pubsub.admin"})


class Maker:
    """Makes or compares what a plan names; each `Drift` is collected."""

    def __init__(self, config: Config, link: Link, create: bool) -> None:
        self.drifts: list[Drift] = []
        self.made: set[str] = set()
        self._config = config
        self._link = link
        self._create = create
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def run(self, plan: Plan) -> None:
        """Topics, then their subscriptions.

        Raises:
            AtLeastOnceError: as `Adapter.declare`.
        """
        await asyncio.gather(*(self._topic(plan.shown[name], topic) for name, topic in plan.topics.items()))
        await asyncio.gather(
            *(self._subscription(plan.shown[name], wanted) for name, wanted in plan.subscriptions.items())
        )
        self.drifts.sort(key=lambda drift: (drift.name, not drift.breaks))

    async def _topic(self, name: str, wanted: Any) -> None:
        found = await self._ensure("Topic", name, wanted, api.GetTopicRequest(topic=wanted.name))
        if found is not None:
            self.drifts += compare_topic(name, wanted, found)

    async def _subscription(self, name: str, wanted: Any) -> None:
        request = api.GetSubscriptionRequest(subscription=wanted.name)
        found = await self._ensure("Subscription", name, wanted, request)
        if found is not None:
            self.drifts += compare(name, wanted, found)

    async def _ensure(self, kind: str, name: str, wanted: Any, question: Any) -> Any:
        """What is there now; None where that cannot be seen, or was made by us."""
        for _ in range(3):
            try:
                return await self._call(f"Get{kind}", question)
            except grpc.RpcError as error:
                code = faults.classify(error).code
                if code is Code.NOT_FOUND and not self._create:
                    self.drifts.append(Drift(name, "missing", kind.lower(), "nothing", breaks=True))
                    return None
                if code is not Code.NOT_FOUND and not (code is Code.PERMISSION and self._create):
                    raise faults.as_error(error, f"{kind.lower()} {name}") from error
                may_look = code is not Code.PERMISSION
            try:
                await self._call(f"Create{kind}", wanted)
                self.made.add(wanted.name)
                return None
            except grpc.RpcError as error:
                fault = faults.classify(error)
                if fault.code is Code.INVALID or error.code() is grpc.StatusCode.UNKNOWN:
                    raise ConfigurationError(f"{kind.lower()} {name}: {fault.detail}") from error
                if fault.code is not Code.CONFLICT:
                    raise faults.as_error(error, f"{kind.lower()} {name}") from error
                if not may_look:
                    return None
        return None

    async def _call(self, name: str, request: Any) -> Any:
        async with self._room:
            return await self._link.call(name, request, seconds=self._config.operation_timeout)

    async def check_permissions(self, plan: Plan) -> None:
        """Warn where the service's own agent does not seem allowed to move messages to their dead-letter topics: it then
        goes on delivering them. Only for what was just made; a role given to the whole project cannot be seen here."""
        for wanted in plan.subscriptions.values():
            net = wanted.dead_letter_policy.dead_letter_topic
            if wanted.name not in self.made or not net:
                continue
            for resource, roles, role in ((net, PUBLISH, "publisher"), (wanted.name, SUBSCRIBE, "subscriber")):
                try:
                    policy = await self._call("GetIamPolicy", api.GetIamPolicyRequest(resource=resource))
                except grpc.RpcError as error:
                    log.debug("%s: its IAM policy cannot be read: %s", resource, faults.classify(error))
                    continue
                if not grants_agent(policy, roles):
                    log.warning(
                        "%s names no service agent (service-PROJECT_NUMBER%s) with roles/pubsub.%s: unless the project grants "
                        "it, messages that crash their consumers are never moved to the dead letters by Pub/Sub",
                        resource,
                        AGENT,
                        role,
                    )


def grants_agent(policy: Any, roles: frozenset[str]) -> bool:
    """Whether ``policy`` gives Pub/Sub's service agent one of ``roles``."""
    return any(
        binding.role in roles and any(member.endswith(AGENT) for member in binding.members)
        for binding in policy.bindings
    )


async def remove(plan: Plan, config: Config, link: Link) -> None:
    """Delete subscriptions, then topics; what is not there, or is still another's net, is fine."""

    async def drop(name: str, request: Any) -> None:
        try:
            await link.call(name, request, seconds=config.operation_timeout)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                raise faults.as_error(error, f"deleting {request}") from error

    await asyncio.gather(
        *(drop("DeleteSubscription", api.DeleteSubscriptionRequest(subscription=name)) for name in plan.subscriptions)
    )
    await asyncio.gather(*(drop("DeleteTopic", api.DeleteTopicRequest(topic=name)) for name in plan.topics))
