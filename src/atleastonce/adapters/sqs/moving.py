"""SQS' own move of a whole dead-letter queue (``StartMessageMoveTask``). Everything here blocks."""

from __future__ import annotations

from typing import Any, Final

from atleastonce.adapters.sqs.clients import Clients
from atleastonce.errors import BrokerUnavailable, ConfigurationError, NotFound

FASTEST: Final = 500
"""Messages per second; SQS moves none faster."""

_UNKNOWN: Final = frozenset({"InvalidAction", "UnknownOperation", "UnknownOperationException"})


class Move:
    """One task. SQS runs one at a time for a queue, for up to 36 hours.

    Args:
        source, destination: URLs.
    """

    def __init__(self, clients: Clients, source: str, destination: str) -> None:
        self._clients = clients
        self._source = source
        self._destination = destination
        self._arn = ""
        self._handle = ""

    def start(self, rate: int | None) -> None:
        """Begin. Raises the client's errors.

        Raises:
            ConfigurationError: the endpoint cannot.
        """
        self._arn = self._arn_of(self._source)
        asked: dict[str, Any] = {"SourceArn": self._arn, "DestinationArn": self._arn_of(self._destination)}
        if rate is not None:
            asked["MaxNumberOfMessagesPerSecond"] = rate
        try:
            self._handle = self._clients.sqs.start_message_move_task(**asked)["TaskHandle"]
        except Exception as error:
            code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
            if code in _UNKNOWN:
                raise ConfigurationError(
                    "this endpoint has no StartMessageMoveTask; redrive without --native"
                ) from error
            raise

    def look(self) -> tuple[int, int | None, bool]:
        """How many were moved, of how many, and whether it has ended.

        Raises:
            NotFound: SQS knows no such task any more.
            BrokerUnavailable: it failed; what was not moved is where it was.
        """
        found = self._clients.sqs.list_message_move_tasks(SourceArn=self._arn, MaxResults=10).get("Results", ())
        if not found:
            raise NotFound("SQS knows nothing of the move any more")
        # A handle is shown while a task runs and never after.
        task = next((each for each in found if each.get("TaskHandle") == self._handle), None)
        task = task or max(found, key=lambda each: int(each.get("StartedTimestamp") or 0))
        moved = int(task.get("ApproximateNumberOfMessagesMoved") or 0)
        total = task.get("ApproximateNumberOfMessagesToMove")
        if task["Status"] == "FAILED":
            raise BrokerUnavailable(f"SQS ended the move after {moved} messages: {task.get('FailureReason', 'unsaid')}")
        return moved, None if total is None else int(total), task["Status"] in ("COMPLETED", "CANCELLED")

    def cancel(self) -> None:
        """End it. What was moved stays moved. Raises the client's errors; none where it has ended already."""
        try:
            self._clients.sqs.cancel_message_move_task(TaskHandle=self._handle)
        except Exception as error:
            code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
            if "ResourceNotFound" not in code:
                raise

    def _arn_of(self, url: str) -> str:
        asked = self._clients.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        return str(asked["Attributes"]["QueueArn"])
