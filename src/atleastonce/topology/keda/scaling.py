"""How a service is to be scaled."""

from __future__ import annotations

import math
import re

import msgspec

from atleastonce.errors import ConfigurationError
from atleastonce.topology.declared import Reading

# A label's value, which KEDA makes of the object's name, has 63 characters.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Scaling(msgspec.Struct, frozen=True):
    """What the service's own code does not say.

    Attributes:
        deployment: the workload; its name is the object's, too.
        namespace: of all objects; None: the one in which they are applied.
        waiting: how many messages that could run now are there for one replica. Too small: replicas come and go with every
            burst, and on Kafka each change is a rebalance. Too large: messages wait long before anybody helps.
        within: seconds in which one replica works ``waiting`` messages off. By it messages that wait for their retry are
            counted: what is spread over a delay of ten times this long is a tenth of the work.
        least: replicas that always run. 0 saves them while nothing waits; the first message then waits for a start.
        most: replicas at most; None: the partitions of its largest source on Kafka, and where a source is made of parts; else 10.
        secret: the Kubernetes secret with the broker's ``username`` and ``password``; None: named after the deployment.
        auth: a ``TriggerAuthentication`` that exists already; then none is made.
        monitoring: ``host:port`` of the NATS server's monitoring; None: the first server, port 8222.
        account: the NATS account that has the streams.
    """

    deployment: str
    namespace: str | None = None
    waiting: int = 100
    within: float = 60.0
    least: int = 1
    most: int | None = None
    secret: str | None = None
    auth: str | None = None
    monitoring: str | None = None
    account: str = "$G"

    def check(self) -> None:
        """Raises:
        ConfigurationError: a name that Kubernetes cannot have, or numbers that contradict each other.
        """
        named = {"deployment": self.deployment, "namespace": self.namespace, "secret": self.secret, "auth": self.auth}
        for option, name in named.items():
            if name is not None and not _LABEL.fullmatch(name):
                raise ConfigurationError(
                    f'--{option} "{name}": Kubernetes takes 1 to 63 small letters, digits and "-", no "-" at the ends; '
                    f"give --{option} NAME"
                )
        if self.most is not None and self.least > self.most:
            raise ConfigurationError(f"--min {self.least} is above --max {self.most}")

    def threshold(self, reading: Reading) -> int:
        """How many messages in ``reading`` are there for one replica."""
        wanted = max(self.waiting, math.ceil(self.waiting * reading.delay / self.within))
        # KEDA takes the largest answer of all triggers, and does not add them up: each part answers for all of them.
        return max(1, math.ceil(wanted / reading.among))
