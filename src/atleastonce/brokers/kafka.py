"""Kafka 4 on one node: broker and controller in one process, transactions and share groups ready to use."""

from __future__ import annotations

import base64
import os
import re
import time
import uuid
from dataclasses import replace
from pathlib import Path

from . import java, ready
from .cache import install_once, remove_tree
from .model import HOST, Command, Image, NotReady, Place, Recipe
from .ports import free_port
from .process import end, spawn
from .progress import Progress, Silent, wait_until
from .tools import interrupted, run

VERSION = "4.3.1"

# Heap: a development broker with tens of topics lives in 256 MB; with less than about 128 MB it dies under load.
FLAGS = ["-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
FLAGS += ["-Dlog4j2.configurationFile=log4j2.properties", "-Xlog:disable", "-Xlog:all=error:stderr"]
CLASS_PATH = "libs/*"  # relative, with the installation as working directory: the shared archive depends on it
ARCHIVE = "kafka.jsa"

# `main` is for clients. `proxied` is a second door whose advertised address is `proxy`: a fault proxy that listens on
# `proxy` and forwards to `proxied` stays between client and broker, although Kafka sends clients where it advertises.
PORTS = {"main": 9092, "controller": 9093, "proxied": 9094, "proxy": 9095}

SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{main},PROXIED://{host}:{proxied},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{main},PROXIED://{host}:{proxy}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
"""

# The same in a container. Without the zero, every join of a group waits three seconds for more members; with the
# default session timeout a broker that was killed waits nine seconds for its own ghost before it serves again. KIP-848's
# groups take their timeouts from the broker: 45 s until the partitions of a killed member go to others. Share groups, too: a
# member joins with its second heartbeat, after 5 s.
ONE_NODE = {
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    "group.consumer.min.session.timeout.ms": "6000",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "500",
    "group.share.min.session.timeout.ms": "6000",
    "group.share.session.timeout.ms": "6000",
    "group.share.min.heartbeat.interval.ms": "500",
    "group.share.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "400",
    "auto.create.topics.enable": "false",
}

LOGGING = """\
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
logger.app.name=kafka.server
logger.app.level=info
logger.version.name=org.apache.kafka.common.utils.AppInfoParser
logger.version.level=info
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %-5p %c{1}: %m%n
"""


def install(progress: Progress) -> Path:
    """Jars and a class-data archive in the cache; a Java runtime beside them. Raises `Unavailable`."""
    java.runtime("kafka", progress)

    def build(folder: Path) -> None:
        java.fetch_jars("kafka", "kafka", folder / "libs", progress)
        for leftover in [*folder.glob("*.py"), *folder.glob("*.json")]:
            leftover.unlink()
        (folder / "log4j2.properties").write_text(LOGGING)
        progress.step("kafka", "preparing a fast start")
        _archive(folder)

    return install_once(f"kafka-{VERSION}", build)


def prepare(install: Path, place: Place) -> Command:
    """Write the settings, format the data directory where it is new."""
    program = java.runtime("kafka", Silent())
    settings = place.directory / "server.properties"
    text = SETTINGS.format(host=HOST, data=place.data, **place.ports)
    settings.write_text(text + "".join(f"{key}={value}\n" for key, value in ONE_NODE.items()))
    env = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": str(place.directory)}
    if not (place.data / "meta.properties").exists():
        # An id that begins with "-" would be taken for an option.
        cluster = "a" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
        argv = [str(program), *FLAGS, "-cp", CLASS_PATH, "kafka.tools.StorageTool", "format", "-t", cluster]
        argv += ["-c", str(settings)]
        run("kafka", f"formatting {place.data}", argv, cwd=install, env=env, inherit=False)
    argv = [str(program), *FLAGS, f"-XX:SharedArchiveFile={ARCHIVE}", "-Xshare:auto", "-cp", CLASS_PATH]
    return Command([*argv, "kafka.Kafka", str(settings)], env, str(install))


def _archive(folder: Path) -> None:
    """Run a broker once and keep what it loaded as a class-data archive: each later start takes a second less.

    An optimisation: where it does not work out, starts are slower and nothing else.
    """
    place = Place(folder / "training", {purpose: free_port() for purpose in PORTS})
    place.directory.mkdir()
    command = prepare(folder, place)
    keep = f"-XX:ArchiveClassesAtExit={ARCHIVE}"
    argv = [keep if each.startswith("-XX:SharedArchiveFile") else each for each in command.argv]
    who = spawn(replace(command, argv=argv), place.directory, place.directory / "log")
    deadline = time.monotonic() + 60
    try:
        while wait_until(deadline) and not interrupted.is_set():
            try:
                ready.kafka(HOST, place.port, "")
                break
            except (OSError, NotReady):
                continue
    finally:
        end(place.directory, who, command.stop_signal, grace=60)
        remove_tree(place.directory)


def _version(place: Place) -> str | None:
    """What the broker wrote into its log at this start: its protocol has no place for it."""
    log = place.directory / "server.log"
    found = re.findall(r"Kafka version: (\S+)", log.read_text(errors="replace")) if log.exists() else []
    return found[-1] if found else None


def _container_env(place: Place) -> dict[str, str]:
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": "1@localhost:9093",
        "listeners": "PLAINTEXT://0.0.0.0:9092,PROXIED://0.0.0.0:9094,CONTROLLER://localhost:9093",
        "advertised.listeners": "PLAINTEXT://{h}:{main},PROXIED://{h}:{proxy}".format(h=HOST, **place.ports),
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        **ONE_NODE,
    }
    return {"KAFKA_" + key.upper().replace(".", "_"): value for key, value in settings.items()}


RECIPE = Recipe(
    name="kafka",
    ports=PORTS,
    image=Image("apache/kafka:4.3.1", {"main": 9092, "proxied": 9094}, env=_container_env),
    url=lambda port: f"kafka://{HOST}:{port}",
    install=install,
    prepare=prepare,
    probe=ready.kafka,
    version=_version,
    addresses=lambda place: {
        "proxied": f"{HOST}:{place.ports['proxied']}",
        "proxy": f"{HOST}:{place.ports['proxy']}",
    },
)
