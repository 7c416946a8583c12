"""The conformance suite: what every adapter has to show, for ours and for anybody's.

Whoever writes an adapter subclasses `ConformanceSuite` in a test file and supplies a `Harness`::

    from atleastonce.testing.conformance import ConformanceSuite, Harness


    class PulsarHarness(Harness):
        name = "pulsar"
        url = "pulsar://127.0.0.1:6650"
        known_gaps = {"29": "https://... : the emulator ignores delays"}


    class TestPulsar(ConformanceSuite):
        @pytest.fixture
        def harness(self):
            return PulsarHarness()

and runs pytest. ``pytest_plugins = ["atleastonce.testing.conformance.plugin"]`` in the top ``conftest.py`` adds
``--conformance-report DIR``, from which `atleastonce.testing.conformance.table` renders the table of results.

A case is a numbered test that says what it needs; where a broker lacks that, the case is *not supported*. What fails
and should not is listed in `Harness.known_gaps` with its reason; an entry that starts to pass fails the run. Cases
compare what was sent with what was received, wait for conditions with a deadline, and may run in parallel against one
broker.

The cases, by section: `round_trip`, `publishing`, `isolation`, `settlement` and `redelivery`, `ordering`, `flow`,
`lifecycle` and `faults`, `tools`. Cases for the layers above (a running service on a backend: `handlers`, `draining`,
`patterns`) are a `Section` of their own under `Suite`, and open their own connection to ``bench.harness.url``.
"""

import pytest

# The cases' assertions explain themselves as a user's own tests do, which has to be asked for before their import.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in (
            "bench", "child", "draining", "faults", "flow", "handlers", "isolation", "lifecycle", "lines", "ordering",
            "patterns", "publishing", "reader", "redelivery", "round_trip", "services", "settlement", "suite", "tools",
        )
    )
)  # fmt: skip

from atleastonce.testing.conformance.bench import Bench, assert_same, log_of  # noqa: E402
from atleastonce.testing.conformance.cases import Case, Section, cases_of, requires  # noqa: E402
from atleastonce.testing.conformance.harness import Harness, KillableBroker, RawClient, RawMessage  # noqa: E402
from atleastonce.testing.conformance.needs import Need  # noqa: E402
from atleastonce.testing.conformance.suite import ConformanceSuite, Suite  # noqa: E402

__all__ = [
    "ConformanceSuite",
    "Harness",
    "KillableBroker",
    "RawClient",
    "RawMessage",
    "Suite",
    "Section",
    "Case",
    "Need",
    "requires",
    "cases_of",
    "Bench",
    "assert_same",
    "log_of",
]
