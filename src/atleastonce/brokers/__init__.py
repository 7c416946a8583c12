"""Real brokers on any machine, for development, tests and benchmarks.

    running = up(["kafka", "rabbitmq"])
    running["kafka"].url        # kafka://127.0.0.1:21873
    down()

Each broker is looked for in this order: an address in the environment (`ALO_KAFKA_URL`, ...), a container where a
Docker engine answers, and a native process, installed from the package registries without root. Everything listens on
the loopback address only. `session()` gives brokers that end with the block that asked for them.
"""

from .launch import Provisioned, down, session, status, up
from .model import RequiredBrokersMissing, StartFailed, Unavailable
from .recipes import NAMES
from .running import Running

__all__ = [
    "up",
    "down",
    "status",
    "session",
    "NAMES",
    "Running",
    "Provisioned",
    "Unavailable",
    "StartFailed",
    "RequiredBrokersMissing",
]
