"""``atleastonce topology export``: a service's needs, written for the tools of others. Asks no broker."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

from atleastonce.cli.errors import Traceback
from atleastonce.cli.loader import load_service
from atleastonce.cli.output import log_to_stderr, note
from atleastonce.cli.target import App, OtherBroker
from atleastonce.durations import seconds
from atleastonce.errors import ConfigurationError
from atleastonce.topology import Declared, Export, Scaling, alarms, declared, definitions, topics_script
from atleastonce.topology import asyncapi as asyncapi_document
from atleastonce.topology import keda as keda_objects
from atleastonce.topology import terraform as terraform_configuration

app = typer.Typer(
    help="Write what a service needs for other tools. Asks no broker, and holds no secret.",
    no_args_is_help=False,
    rich_markup_mode=None,
)


@app.command("keda")
def keda(
    app: App,
    broker: OtherBroker = None,
    deployment: Annotated[
        str | None, typer.Option(help="The Deployment that is scaled; by default the service's name.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Of the objects.")] = None,
    waiting: Annotated[
        int, typer.Option(min=1, help="How many messages that could run now one replica is there for.")
    ] = 100,
    within: Annotated[
        str, typer.Option(help="In what time one replica works them off; retries that wait are counted by it.")
    ] = "1m",
    least: Annotated[int, typer.Option("--min", min=0, help="Replicas at least.")] = 1,
    most: Annotated[
        int | None, typer.Option("--max", min=1, help="Replicas at most; by default Kafka's partitions, elsewhere 10.")
    ] = None,
    secret: Annotated[str | None, typer.Option(help="The Kubernetes secret with username and password.")] = None,
    auth: Annotated[
        str | None, typer.Option(help="A TriggerAuthentication that exists, instead of one made here.")
    ] = None,
    monitoring: Annotated[str | None, typer.Option(help="NATS: host:port of the server's monitoring.")] = None,
    account: Annotated[str, typer.Option(help="NATS: the account that has the streams.")] = "$G",
    traceback: Traceback = False,
) -> None:
    """Write a KEDA ScaledObject, with a trigger for each source and each retry channel: JSON, for kubectl apply -f -."""
    needs = _load(app, broker)
    scaling = Scaling(
        deployment=deployment or needs.service,
        namespace=namespace,
        waiting=waiting,
        within=seconds(within, name="--within", minimum=1.0),
        least=least,
        most=most,
        secret=secret,
        auth=auth,
        monitoring=monitoring,
        account=account,
    )
    _print(keda_objects(needs, scaling))


@app.command("rabbitmq")
def rabbitmq(app: App, broker: OtherBroker = None, traceback: Traceback = False) -> None:
    """Write RabbitMQ definitions: JSON, for rabbitmqctl import_definitions."""
    _print(definitions(_load(app, broker)))


@app.command("kafka")
def kafka(app: App, broker: OtherBroker = None, traceback: Traceback = False) -> None:
    """Write a shell script that makes the topics, with kafka-topics.sh."""
    _print(topics_script(_load(app, broker)))


@app.command("terraform")
def terraform(
    app: App,
    broker: OtherBroker = None,
    provider: Annotated[str | None, typer.Option(help="For Kafka: kafka (Mongey/kafka) or confluent.")] = None,
    traceback: Traceback = False,
) -> None:
    """Write a Terraform configuration, for a file like broker.tf.json."""
    _print(terraform_configuration(_load(app, broker), provider))


@app.command("cloudwatch")
def cloudwatch(
    app: App,
    broker: OtherBroker = None,
    oldest: Annotated[str, typer.Option(help="How long a message may wait for its first try.")] = "15m",
    traceback: Traceback = False,
) -> None:
    """Write alarms on dead letters and on messages that wait too long: a CloudFormation template."""
    _print(alarms(_load(app, broker), seconds(oldest, name="--oldest", minimum=60.0)))


@app.command("asyncapi")
def asyncapi(
    app: App,
    broker: OtherBroker = None,
    version: Annotated[str, typer.Option("--app-version", help="Of the service's interface.")] = "1.0.0",
    traceback: Traceback = False,
) -> None:
    """Write an AsyncAPI 3.0 document: what is received, from where, in which shape."""
    _print(asyncapi_document(_load(app, broker), version))


def _load(name: str, url: str | None) -> Declared:
    log_to_stderr("WARNING")
    service = load_service(name)
    if not service.consumers:
        raise ConfigurationError(f"service {service.name} has no handlers, and so needs nothing on its broker")
    return declared(service.name, service.consumers, service.make_broker(url).adapter, service.drain_seconds)


def _print(export: Export) -> None:
    for each in export.notes:
        note(f"note: {each}")
    text = export.document
    if not isinstance(text, str):
        text = msgspec.json.format(msgspec.json.encode(text), indent=2).decode() + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()
