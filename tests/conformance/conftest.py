"""Puts `guarded_brokers` within reach of the suites, and the kits of the integration tests that it uses."""

import sys
from pathlib import Path

_HERE = Path(__file__).parent

for folder in (_HERE, _HERE.parent / "integration" / "sqs", _HERE.parent / "integration" / "kafka"):
    sys.path.insert(0, str(folder))
