"""``atleastonce check``: whether a service could start here, and what it would find."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from atleastonce.check import Finding
from atleastonce.cli.errors import DONE, PROBLEM, Traceback, one_line
from atleastonce.cli.loader import load_service
from atleastonce.cli.output import log_to_stderr, print_json
from atleastonce.cli.signals import interruptible
from atleastonce.cli.target import NoWait


class Report(msgspec.Struct, frozen=True):
    """What a check found. ``ok``: nothing that has to be changed."""

    service: str
    broker: str
    offline: bool
    consumers: list[str]
    findings: list[Finding]
    ok: bool


def check(
    app: Annotated[str, typer.Argument(metavar="MODULE:SERVICE", help="Where the service is, like app:service.")],
    broker: Annotated[str | None, typer.Option(help="Broker URL, instead of the service's own and ALO_BROKER.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Check the policies alone; ask no broker.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> int:
    """Check a service's policies against its broker, and what it needs against what is there. Creates nothing.

    One line for each finding, and a second one that says why it matters. Exit code 1 if something has to be changed: what a
    start would refuse, or warn of.
    """
    log_to_stderr("WARNING")
    service = load_service(app)
    findings = interruptible(service.check(url=broker, no_wait=no_wait, offline=offline))
    problems = sum(finding.severity != "note" for finding in findings)
    report = Report(
        service=service.name,
        broker=service.make_broker(broker).url,
        offline=offline,
        consumers=[str(consumer.home) for consumer in service.consumers],
        findings=findings,
        ok=not problems,
    )
    if as_json:
        print_json(report)
    else:
        for finding in findings:
            print(f"{finding.severity}: {one_line(finding.text)}")
            if finding.severity != "note":
                print(f"    {finding.code}: {one_line(finding.why)}")
        looked = "policies" if offline else "policies and broker"
        verdict = "nothing has to be changed" if not problems else f"{problems} to be changed"
        print(f"service {report.service} on {report.broker}: {looked} checked, {verdict}")
    return PROBLEM if problems else DONE
