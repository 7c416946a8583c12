"""What a service would meet if it started now: its policies, what is on its broker, and what follows from both. Nothing is changed
by looking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from atleastonce import check
from atleastonce.broker import Broker
from atleastonce.check import Finding
from atleastonce.consumer import Consumer
from atleastonce.contract import Adapter, Fact
from atleastonce.errors import ConfigurationError
from atleastonce.explain import Explanation, explain
from atleastonce.inspecting import inspect, looking


async def findings(consumers: Sequence[Consumer], broker: Broker, *, create: bool, offline: bool) -> list[Finding]:
    """See `Service.check`.

    Args:
        consumers: of the service.
        broker: not yet open; closed in the end.
        create: whether a start creates what is missing.
        offline: as in `Service.check`.
    """
    capabilities = broker.adapter.capabilities
    found = check.together(consumers, capabilities)
    found += [finding for consumer in consumers for finding in check.policy(consumer, capabilities)]
    if not offline:
        async with looking(broker):
            capabilities = broker.adapter.capabilities  # some limits are the server's to say
            for consumer in consumers:
                topology, _ = check.wanted(consumer, capabilities)
                if topology is None:
                    continue
                try:
                    drifts = await broker.adapter.declare(topology, create=False)
                except ConfigurationError as error:  # a name or an option that this broker cannot have
                    found.append(check.impossible(error))
                else:
                    found += check.topology(drifts, create=create)
            found += (await settings(consumers, broker.adapter)).findings
    return check.merge(found)


async def explanations(consumers: Sequence[Consumer], broker: Broker, *, drain: float, live: bool) -> list[Explanation]:
    """See `Service.explain`.

    Args:
        consumers: of the service.
        broker: not yet open; closed in the end.
        drain: the service's, in seconds.
        live: as in `Service.explain`.
    """
    facts: list[Fact] | None = None
    if live:
        async with looking(broker):
            wanted = [check.wanted(each, broker.adapter.capabilities)[0] for each in consumers]
            facts = await inspect(broker.adapter, [topology for topology in wanted if topology is not None]) or []
    capabilities = broker.adapter.capabilities
    for consumer in consumers:  # what does not start cannot be explained
        check.refuse(check.policy(consumer, capabilities))
    return [explain(consumer, capabilities, drain=drain, facts=facts) for consumer in consumers]


class Settings(NamedTuple):
    """What follows from the settings of what is there.

    Attributes:
        findings: what cannot be kept with them.
        memory: for how many seconds each consumer remembers a message; None if it does not.
    """

    findings: list[Finding]
    memory: list[float | None]


async def settings(consumers: Sequence[Consumer], adapter: Adapter) -> Settings:
    """As far as this broker tells them."""
    wanted = [(consumer, check.wanted(consumer, adapter.capabilities)[0]) for consumer in consumers]
    there = [(consumer, topology) for consumer, topology in wanted if topology is not None]
    facts = await inspect(adapter, [topology for _, topology in there])
    found = check.broker(facts or [])
    for consumer, topology in there:
        found += check.settings(consumer, adapter.capabilities, topology, facts or [])
    memory = [
        None if topology is None else check.memory(consumer, adapter.capabilities, topology, facts)
        for consumer, topology in wanted
    ]
    return Settings(found, memory)
