"""The status as Prometheus metrics: what a scrape of a running service says, and that a registry takes it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable

import msgspec
import pytest
from front_kit import until
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from atleastonce import ConfigurationError, FailurePolicy, Queue, Service
from atleastonce.observe.prometheus import StatusCollector
from atleastonce.patterns.hot_keys import HotKey
from atleastonce.runtime import ConsumerStatus


def scraped(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Values by name and labels (source, handler, then the others by name), as a server reads them from the text."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels, key=_place))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


async def test_a_scrape_says_what_a_running_service_says() -> None:
    work: Queue[str] = Queue("work", fifo=True, partitions=1)
    service = Service("shop", broker="memory://")
    held, go = asyncio.Event(), asyncio.Event()

    @service.consumer(work, ordered=True, failure=FailurePolicy(in_place=None))
    async def handle(payload: str) -> None:
        if payload == "hold":
            held.set()
            await go.wait()
        if payload == "fail":
            raise ValueError(payload)

    registry = CollectorRegistry()
    registry.register(StatusCollector(service.status))
    assert scraped(registry) == {}, "a service that has not started has nothing to show"
    async with service:
        payloads = ["ok"] * 30 + ["fail"] * 2 + ["hold"]
        keys = ["customer-7"] * 30 + ["a", "b", "c"]
        for payload, key in zip(payloads, keys, strict=True):
            await service.broker.publish(work, payload, key=key)
        await asyncio.wait_for(held.wait(), 10)
        await until(lambda: _counts(service.status())["dead"] == 2)
        found = scraped(registry)
        go.set()

    name = service.consumers[0].binding.name
    reader = ("work", name)
    assert found["atleastonce_messages_total", *reader, "received"] == 33
    assert found["atleastonce_messages_total", *reader, "done"] == 30
    assert found["atleastonce_messages_total", *reader, "dead"] == 2
    assert found["atleastonce_in_flight_messages", *reader] == 1
    assert found["atleastonce_in_flight_bytes", *reader] > 0
    assert found["atleastonce_state", *reader, "running"] == 1
    assert found["atleastonce_state", *reader, "paused"] == 0
    assert found["atleastonce_hot_key_ratio", *reader, "b'customer-7'", "messages"] >= 0.9


def test_hot_keys_are_left_out_where_names_may_not_leave() -> None:
    status = _status(hot_keys=[HotKey("k", messages=0.5, time=0.1)])
    shown, hidden = CollectorRegistry(), CollectorRegistry()
    shown.register(StatusCollector(lambda: [status]))
    hidden.register(StatusCollector(lambda: [status], hot_keys=False))
    with pytest.raises(ConfigurationError, match="hot_keys='no' must be True or False"):
        StatusCollector(lambda: [status], hot_keys="no")  # type: ignore[arg-type]
    assert scraped(shown)["atleastonce_hot_key_ratio", "work", "handle", "k", "time"] == 0.1
    assert not [key for key in scraped(hidden) if key[0] == "atleastonce_hot_key_ratio"]


def test_what_a_relay_counts_anew_is_a_gauge() -> None:
    counts = {"published": 7, "waiting": 3, "delayed": 0, "parked now": 1}
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: [_status(counts=counts, state="standing by")]))
    found = scraped(registry)
    assert found["atleastonce_messages_total", "work", "handle", "published"] == 7
    assert found["atleastonce_outbox_rows", "work", "handle", "waiting"] == 3
    assert found["atleastonce_outbox_rows", "work", "handle", "parked"] == 1
    assert found["atleastonce_state", "work", "handle", "standing by"] == 1


def test_without_its_client_the_module_says_what_to_install() -> None:
    probe = "import sys; sys.modules['prometheus_client'] = None; import atleastonce.observe.prometheus"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'atleastonce[prometheus]'" in done.stderr.splitlines()[-1]


def _place(label: str) -> tuple[bool, bool, str]:
    return label != "source", label != "handler", label


def _status(**changed: object) -> ConsumerStatus:
    status = ConsumerStatus("work", "handle", "running", "", in_flight=0, bytes=0, counts={})
    return msgspec.structs.replace(status, **changed)


def _counts(readers: Iterable[ConsumerStatus]) -> dict[str, int]:
    return next(reader.counts for reader in readers if reader.source == "work")
