"""CloudWatch: alarms on dead letters and on what waits too long, as a CloudFormation template."""

from __future__ import annotations

import re
from typing import Any, Final

from atleastonce.topology.declared import Declared, Reading
from atleastonce.topology.export import Export
from atleastonce.topology.possible import ensure_possible

_TOPIC: Final = "AlarmTopicArn"
_HAS_TOPIC: Final = "HasAlarmTopic"


def alarms(declared: Declared, oldest: float) -> Export:
    """An alarm for each dead-letter queue that is not empty, and for each source whose oldest message is too old.

    Args:
        declared: of the service.
        oldest: seconds that a message may wait for its first try. What waits for a retry is older, and meant to be: the waits
            of its chain are added. Too small: an alarm for every deployment. Too large: nobody knows.

    Raises:
        ConfigurationError: another broker.
    """
    ensure_possible(declared, "cloudwatch")
    found: dict[str, Any] = {}
    for name, place in declared.dead_letters.items():
        found[_logical(found, "DeadLetters", place["queue"])] = _alarm(
            place["queue"], "ApproximateNumberOfMessagesVisible", 0, f"{name} is not empty: atleastonce dlq list"
        )
    for reading in declared.readings:
        if reading.place is None or reading.role == "suspects":
            continue
        queue, limit = reading.place["queue"], oldest + reading.delay + _chain(declared, reading)
        text = f"a message of {reading.source} waits for more than {limit:g} s: atleastonce lag"
        found[_logical(found, "OldestAge", queue)] = _alarm(queue, "ApproximateAgeOfOldestMessage", limit, text)
    return Export(
        {
            "AWSTemplateFormatVersion": "2010-09-09",
            "Description": f"Alarms of service {declared.service}",
            "Parameters": {
                _TOPIC: {"Type": "String", "Default": "", "Description": "The SNS topic that is told; none: nobody is."}
            },
            "Conditions": {_HAS_TOPIC: {"Fn::Not": [{"Fn::Equals": [{"Ref": _TOPIC}, ""]}]}},
            "Resources": found,
        }
    )


def _chain(declared: Declared, reading: Reading) -> float:
    """Seconds that a message may spend in its own queue between tries."""
    if not reading.holds_retries:
        return 0.0
    (consumer,) = (each for each in declared.consumers if each.home == reading.home)
    return sum(consumer.failure.delays)


def _alarm(queue: str, metric: str, threshold: float, text: str) -> dict[str, Any]:
    told = {"Fn::If": [_HAS_TOPIC, [{"Ref": _TOPIC}], {"Ref": "AWS::NoValue"}]}
    return {
        "Type": "AWS::CloudWatch::Alarm",
        "Properties": {
            "AlarmDescription": text,
            "Namespace": "AWS/SQS",
            "MetricName": metric,
            "Dimensions": [{"Name": "QueueName", "Value": queue}],
            "Statistic": "Maximum",
            "Period": 60,
            "EvaluationPeriods": 1,
            "Threshold": threshold,
            "ComparisonOperator": "GreaterThanThreshold",
            "TreatMissingData": "notBreaching",  # SQS tells nothing of a queue that nobody used for hours
            "AlarmActions": told,
            "OKActions": told,
        },
    }


def _logical(taken: dict[str, Any], kind: str, queue: str) -> str:
    """An id of letters and digits, which is all that CloudFormation takes; no two alike."""
    plain = kind + "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", queue))
    found, number = plain, 1
    while found in taken:
        number += 1
        found = f"{plain}{number}"
    return found
