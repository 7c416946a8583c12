"""Kafka: a shell script for the tools that come with it."""

from __future__ import annotations

import shlex

from atleastonce.contract import Resource
from atleastonce.topology.declared import Declared
from atleastonce.topology.export import Export
from atleastonce.topology.possible import ensure_possible

_HEAD = """\
#!/bin/sh
# The topics of service {service}. What exists stays as it is: `atleastonce topology plan` tells how it differs.
#
#   sh topics.sh --bootstrap-server HOST:PORT [--command-config FILE]
#
# KAFKA_TOPICS in the environment names Kafka's own kafka-topics.sh, where it is not on the path.
set -eu
: "${{KAFKA_TOPICS:=kafka-topics.sh}}"
"""


def topics_script(declared: Declared) -> Export:
    """A script that makes each topic that is not there.

    Raises:
        ConfigurationError: another broker.
    """
    ensure_possible(declared, "kafka")
    head = _HEAD.format(service=declared.service)
    return Export(head + "".join(f"{_command(each)}\n" for each in declared.of_kind("topic")))


def _command(topic: Resource) -> str:
    words = ["--create", "--if-not-exists", "--topic", topic.name, "--partitions", str(topic.settings["partitions"])]
    if topic.settings["replication.factor"] > 0:  # else the broker's own default
        words += ["--replication-factor", str(topic.settings["replication.factor"])]
    for name, value in topic.settings["config"].items():
        words += ["--config", f"{name}={value}"]
    return f'"$KAFKA_TOPICS" "$@" {shlex.join(words)}'
