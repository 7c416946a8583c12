"""Where things are: URLs of queues, ARNs of topics, and which topics have somebody who listens."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.config import Config

# For so long a topic that had a subscriber is taken to have one. Longer: what is published after the last one left is lost
# unnoticed. Shorter: more requests.
_HEARD_SECONDS: Final = 60.0


class Directory:
    """Every look-up may block, and runs on a thread of the adapter; what was found is remembered."""

    def __init__(self, config: Config, clients: Clients) -> None:
        self._config = config
        self._clients = clients
        self._urls: dict[str, str] = {}
        self._heard: dict[str, float] = {}
        self._account: tuple[str, str] | None = None
        self._lock = threading.Lock()

    def known(self, queue: str) -> str | None:
        """The URL of ``queue`` if it was found before."""
        return self._urls.get(queue)

    def learn(self, queue: str, url: str) -> None:
        self._urls[queue] = url

    def forget(self, queue: str) -> None:
        self._urls.pop(queue, None)

    def find(self, queue: str) -> str:
        """The URL of ``queue``, asked for. Raises the client's error where there is none."""
        url: str = self._clients.sqs.get_queue_url(QueueName=queue)["QueueUrl"]
        self._urls[queue] = url
        return url

    def url(self, queue: str) -> str:
        """The URL of ``queue``."""
        return self._urls.get(queue) or self.find(queue)

    # ---------------------------------------------------------------------------------------------------------- topics

    def arn(self, service: str, name: str) -> str:
        """The address of a queue or topic of ours. It is made up, not asked for: a topic has no look-up by name."""
        partition, account = self._identity()
        return f"arn:{partition}:{service}:{self._clients.sqs.meta.region_name}:{account}:{name}"

    def _identity(self) -> tuple[str, str]:
        with self._lock:
            if self._account is None:
                if self._config.account is not None:
                    partition: str = self._clients.sqs.meta.partition
                    self._account = (partition, self._config.account)
                else:
                    answer = self._clients.sts.get_caller_identity()
                    self._account = (answer["Arn"].split(":")[1], answer["Account"])
            return self._account

    def heard(self, arn: str) -> bool:
        """Whether ``arn`` has a subscription. SNS confirms what nobody receives: so nobody would ever know.

        Raises the client's error where there is no such topic.
        """
        if time.monotonic() < self._heard.get(arn, 0.0):
            return True
        answer: dict[str, Any] = self._clients.sns.list_subscriptions_by_topic(TopicArn=arn)
        if any(each["SubscriptionArn"] != "PendingConfirmation" for each in answer.get("Subscriptions", ())):
            self.subscribed(arn)
            return True
        return False

    def subscribed(self, arn: str) -> None:
        """``arn`` has a subscription."""
        self._heard[arn] = time.monotonic() + _HEARD_SECONDS

    def silent(self, arn: str) -> None:
        """``arn`` may have lost its subscriptions, or itself."""
        self._heard.pop(arn, None)
