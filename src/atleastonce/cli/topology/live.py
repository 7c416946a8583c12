"""``atleastonce topology plan`` and ``apply``: what is on the broker, beside what a service needs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from atleastonce import check
from atleastonce.check import Finding
from atleastonce.cli.errors import DONE, PROBLEM, Traceback, one_line
from atleastonce.cli.loader import load_service
from atleastonce.cli.output import log_to_stderr, print_json
from atleastonce.cli.signals import interruptible
from atleastonce.cli.target import App, Json, NoWait, OtherBroker
from atleastonce.contract import Drift, Topology
from atleastonce.errors import ConfigurationError
from atleastonce.inspecting import looking
from atleastonce.service import Service
from atleastonce.topology import Planned, resources, topologies
from atleastonce.topology import plan as planned

_SIGNS = {"missing": "+", "there": "=", "differs": "~", "unknown": "?"}


class PlanReport(msgspec.Struct, frozen=True):
    """What would be made, and what differs. ``ok``: `apply` would leave nothing to change."""

    service: str
    broker: str
    resources: list[Planned]
    findings: list[Finding]
    ok: bool


class Made(msgspec.Struct, frozen=True):
    """One resource that was missing, and was made."""

    kind: str
    name: str


class ApplyReport(msgspec.Struct, frozen=True):
    """What was made, and what still differs, because nothing that exists is changed. ``ok``: nothing does."""

    service: str
    broker: str
    made: list[Made]
    findings: list[Finding]
    ok: bool


def plan(
    app: App,
    broker: OtherBroker = None,
    as_json: Json = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> int:
    """Show what a service needs on its broker, and how what is there differs. Creates nothing.

    + would be made, = is there, ~ is there and differs, ? cannot be asked for, and is made again without any change. Exit code 1
    if something differs that `apply` would not change.
    """
    log_to_stderr("WARNING")
    service = load_service(app)
    found, drifts, _ = interruptible(_declare(service, broker, no_wait=no_wait, create=False))
    findings = _lasting(drifts)
    report = PlanReport(service.name, service.make_broker(broker).url, found, findings, not findings)
    if as_json:
        print_json(report)
    else:
        for each in found:
            print(f"{_SIGNS[each.state]} {_title(each)}")
        _print(findings)
        counts = {state: sum(each.state == state for each in found) for state in ("missing", "there", "differs")}
        told = f"{counts['missing']} to be made, {counts['there']} there, {counts['differs']} different"
        print(f"service {report.service} on {report.broker}: {told}")
    return PROBLEM if findings else DONE


def apply(
    app: App,
    broker: OtherBroker = None,
    as_json: Json = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> int:
    """Make what a service needs and its broker does not have. What exists is not changed, and nothing is removed.

    Exit code 1 if something is there with other settings.
    """
    log_to_stderr("WARNING")
    service = load_service(app)
    found, _, left = interruptible(_declare(service, broker, no_wait=no_wait, create=True))
    made = [Made(each.kind, each.name) for each in found if each.state == "missing"]
    findings = _lasting(left)
    report = ApplyReport(service.name, service.make_broker(broker).url, made, findings, not findings)
    if as_json:
        print_json(report)
    else:
        for one in made:
            print(f"made {one.kind} {one.name}")
        _print(findings)
        print(f"service {report.service} on {report.broker}: {len(made)} made, {len(findings)} to be changed")
    return PROBLEM if findings else DONE


async def _declare(
    service: Service, url: str | None, *, no_wait: bool, create: bool
) -> tuple[list[Planned], Sequence[Drift], Sequence[Drift]]:
    """What is needed with what was found of it, how it differed, and how it differs after it was made."""
    if not service.consumers:
        raise ConfigurationError(f"service {service.name} has no handlers, and so needs nothing on its broker")
    broker = service.make_broker(url, no_wait=no_wait)
    adapter = broker.adapter
    async with broker if create else looking(broker):
        whole = Topology.joined(topologies(service.consumers, adapter.capabilities))
        before = await adapter.declare(whole, create=False)
        found = planned(resources(adapter, whole), before)
        return found, before, await adapter.declare(whole, create=True) if create else before


def _lasting(drifts: Sequence[Drift]) -> list[Finding]:
    """What making things does not mend."""
    found = check.topology([drift for drift in drifts if drift.setting != "missing"], create=True)
    return [finding for finding in found if finding.severity != "note"]


def _title(each: Planned) -> str:
    joined = ", ".join(f"{what} {name}" for what, name in each.joins.items() if name != each.name)
    return f"{each.kind} {each.name}" + (f" ({joined})" if joined else "")


def _print(findings: Sequence[Finding]) -> None:
    for finding in findings:
        print(f"{finding.severity}: {one_line(finding.text)}")
        print(f"    {finding.code}: {one_line(finding.why)}")
