"""The suite to subclass, and the fixture that readies each case."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from atleastonce.errors import AtLeastOnceError
from atleastonce.testing.conformance.bench import Bench
from atleastonce.testing.conformance.cases import Section, case_of, cases_of
from atleastonce.testing.conformance.draining import Draining
from atleastonce.testing.conformance.effects import Effects
from atleastonce.testing.conformance.faults import Faults
from atleastonce.testing.conformance.flow import FlowControl
from atleastonce.testing.conformance.handlers import Handlers
from atleastonce.testing.conformance.harness import Harness
from atleastonce.testing.conformance.isolation import Isolation
from atleastonce.testing.conformance.lifecycle import Lifecycle
from atleastonce.testing.conformance.lines import OrderOfKeys
from atleastonce.testing.conformance.ordering import OrderOfMessages
from atleastonce.testing.conformance.patterns import Patterns
from atleastonce.testing.conformance.publishing import Publishing
from atleastonce.testing.conformance.redelivery import Redelivery
from atleastonce.testing.conformance.round_trip import RoundTrip
from atleastonce.testing.conformance.settlement import Settlement
from atleastonce.testing.conformance.tools import Tools

PROPERTY = "conformance"
"""The name under which a test's report carries what the result table needs."""

NOT_SUPPORTED = "not supported: needs "


class Suite(Section):
    """A suite without cases: what readies them. For suites of other layers; adapters use `ConformanceSuite`."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def harness(self) -> Harness:
        """The backend under test. Override it."""
        raise NotImplementedError("give the suite's subclass a fixture `harness` that returns its Harness")

    @pytest_asyncio.fixture
    async def bench(self, request: pytest.FixtureRequest, harness: Harness) -> AsyncIterator[Bench]:
        """The case's work bench; skips a case whose needs are not met, and expects a known gap to fail."""
        suite = type(self)
        case = case_of(suite, request.node.originalname)
        assert case is not None, (
            f"{request.node.name} uses the bench and is no case: name it test_<two digits>_<sentence>"
        )
        known = {each.id for each in cases_of(suite)}
        unknown = sorted({*harness.known_gaps, *harness.unsteady} - known)
        assert not unknown, f"known_gaps or unsteady of {harness.name} names cases that do not exist: {unknown}"
        adapter = harness.adapter()
        await adapter.open()
        bench = Bench(harness, adapter, case.id)
        try:
            request.node.user_properties.append(
                (
                    PROPERTY,
                    {
                        "backend": harness.name,
                        "broker": harness.broker_version(),
                        "cases": len(known),
                        "id": case.id,
                        "name": case.name,
                        "section": case.section,
                    },
                )
            )
            for need in case.needs:
                if not need.met(harness, adapter):
                    pytest.skip(NOT_SUPPORTED + need.name)
            if unsteady := harness.unsteady.get(case.id):
                pytest.xfail(unsteady)
            if gap := harness.known_gaps.get(case.id):
                failures = (AssertionError, TimeoutError, AtLeastOnceError, pytest.fail.Exception)
                request.node.add_marker(pytest.mark.xfail(reason=gap, strict=True, raises=failures))
            yield bench
        finally:
            await bench.close()


class ConformanceSuite(
    Suite,
    RoundTrip,
    Publishing,
    Isolation,
    Settlement,
    Redelivery,
    Handlers,
    OrderOfMessages,
    OrderOfKeys,
    FlowControl,
    Lifecycle,
    Faults,
    Draining,
    Patterns,
    Effects,
    Tools,
):
    """Every case. Subclass it with a name that pytest collects, and give it a ``harness`` fixture::

    class TestPulsar(ConformanceSuite):
        @pytest.fixture
        def harness(self) -> Harness:
            return PulsarHarness()
    """
