"""Kafka's own tool runs our script, and what it made is what our own declaration makes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from topology_kit import looked_at, needs_of, one_queue, read, remove, shop, unlike

from atleastonce.brokers import Unavailable, java, kafka
from atleastonce.brokers.cache import install_once
from atleastonce.brokers.progress import Silent
from atleastonce.topology import terraform, topics_script

pytestmark = pytest.mark.timeout(180, func_only=True)


@pytest.fixture(scope="module")
def kafka_topics(kafka_broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``kafka-topics.sh`` as Kafka ships it, but for the shell around it."""
    try:
        program = java.runtime("kafka", Silent())
        libraries = kafka.install(Silent()) / "libs"
        tools = install_once(
            f"kafka-tools-{kafka.VERSION}",
            lambda folder: java.fetch_jars("kafka", "kafka-tools", folder / "libs", Silent()),
        )
    except Unavailable as missing:  # the broker may be another one's, and need none of them here
        pytest.skip(f"no kafka-topics.sh: {missing.reason}")
    script = tmp_path_factory.mktemp("kafka") / "kafka-topics.sh"
    java_command = f'"{program}" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "{tools}/libs/*:{libraries}/*"'
    script.write_text(f'#!/bin/sh\nexec {java_command} org.apache.kafka.tools.TopicCommand "$@"\n')
    script.chmod(0o755)
    return script


def run(script: str, tool: Path, url: str, folder: Path) -> str:
    (folder / "topics.sh").write_text(script)
    done = subprocess.run(
        ["sh", str(folder / "topics.sh"), "--bootstrap-server", urlsplit(url).netloc],
        env={**os.environ, "KAFKA_TOPICS": str(tool)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
async def test_what_the_script_made_is_what_would_be_declared(
    kafka_url: str, kafka_topics: Path, tmp_path: Path
) -> None:
    service = one_queue(kafka_url)  # the tool takes seconds for each topic
    script = read(topics_script(needs_of(service)))
    assert {each.state for each in await looked_at(service)} == {"missing"}
    try:
        assert run(script, kafka_topics, kafka_url, tmp_path).count("Created topic") == 4
        assert [each.state for each in await looked_at(service)] == ["there"] * 4
        *head, _, _, _, last = script.splitlines()
        assert "Created topic" not in run(
            "\n".join([*head, last]), kafka_topics, kafka_url, tmp_path
        )  # is there already
        async with service.make_broker() as broker:
            wanted = service.consumers[0].topology(broker.adapter.capabilities)
            assert list(await broker.adapter.declare(wanted, create=True)) == []
    finally:
        await remove(service)


async def test_what_terraform_would_make_is_what_would_be_declared(kafka_url: str) -> None:
    service = shop(kafka_url)
    wanted = read(terraform(needs_of(service)))["resource"]["kafka_topic"].values()
    client = AdminClient({"bootstrap.servers": urlsplit(kafka_url).netloc})
    try:
        made = client.create_topics(
            [NewTopic(t["name"], t["partitions"], t["replication_factor"], config=t["config"]) for t in wanted]
        )
        for future in made.values():
            future.result(30)
        assert unlike(await looked_at(service)) == []
    finally:
        await remove(service)
