"""Servers of the tests' own, which no recipe makes: several that replicate, and one behind TLS, passwords and rights."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from atleastonce.brokers import java, kafka, ready
from atleastonce.brokers.model import HOST, Command, NotReady
from atleastonce.brokers.ports import free_port
from atleastonce.brokers.process import Identity, kill, spawn
from atleastonce.brokers.progress import Silent
from atleastonce.testing.brokers import marked

STARTS_WITHIN = 90.0
CLUSTER_ID = "Y2x1c3Rlci1vZi10ZXN0cw"
USERS = {"alice": "al1ce-secret", "bob": "b0b-secret"}  # alice may do everything, bob nothing
CA = "ca.pem"

COMMON = """\
process.roles=broker,controller
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=400
auto.create.topics.enable=false
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL
controller.quorum.voters={voters}
node.id={node}
log.dirs={folder}/data
"""
ALONE = "".join(
    f"{name}=1\n"
    for name in (
        "offsets.topic.replication.factor",
        "transaction.state.log.replication.factor",
        "transaction.state.log.min.isr",
        "share.coordinator.state.topic.replication.factor",
        "share.coordinator.state.topic.min.isr",
    )
)
SHARING = """\
share.coordinator.state.topic.num.partitions=4
group.share.min.record.lock.duration.ms=1000
group.share.min.session.timeout.ms=5000
group.share.session.timeout.ms=6000
group.share.min.heartbeat.interval.ms=500
group.share.heartbeat.interval.ms=500
"""
REPLICATED = """\
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
min.insync.replicas=2
default.replication.factor=3
"""
GUARDED = """\
listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {users};
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={folder}/server.pem
ssl.client.auth=none
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:alice
"""


class Server:
    """One node."""

    def __init__(
        self,
        folder: Path,
        settings: str,
        port: int,
        plain: int,
        *,
        scram: bool = False,
        features: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.address = f"{HOST}:{port}"
        self.plain = f"{HOST}:{plain}"  # where who connects may do everything
        self._plain = plain
        self._install = kafka.install(Silent())
        self._java = str(java.runtime("kafka", Silent()))
        self._who: Identity | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._settings = folder / "server.properties"
        self._settings.write_text(settings)
        words = ["format", "-t", CLUSTER_ID, "-c", str(self._settings)]
        for feature in features:
            words += ["--feature", feature]
        if scram:
            for user, password in USERS.items():
                words += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]"]
        subprocess.run(
            [self._java, *kafka.FLAGS, "-cp", kafka.CLASS_PATH, "kafka.tools.StorageTool", *words],
            cwd=self._install,
            check=True,
            capture_output=True,
        )
        self._owned = contextlib.ExitStack()
        self._mark = self._owned.enter_context(marked("kafka"))

    def url(self, user: str, password: str, *, trusted: bool = True, more: str = "") -> str:
        """Of a `guarded` one."""
        trust = f"ssl.ca.location={self.folder / CA}&" if trusted else ""
        return f"kafka://{user}:{password}@{self.address}?{trust}request.timeout=5s{more}"

    def start(self) -> None:
        quick = [f"-XX:SharedArchiveFile={kafka.ARCHIVE}", "-Xshare:auto"]
        argv = [self._java, *kafka.FLAGS, *quick, "-cp", kafka.CLASS_PATH, "kafka.Kafka", str(self._settings)]
        self._who = spawn(Command(argv, {}, str(self._install)), self._mark, self.folder / "server.log")

    def wait(self) -> None:
        """Until it serves its cluster."""
        deadline = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                ready.kafka(HOST, self._plain, "")
                return
            except (OSError, NotReady):
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text(errors="replace")[-2000:]
                time.sleep(0.1)

    def kill(self) -> None:
        """``kill -9``."""
        kill(self._mark, self._who)

    def end(self) -> None:
        self._owned.close()


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Sequence[Server]]:
    """Three that replicate to each other; each topic has three copies, and a write is confirmed once two of them have it."""
    ports = [(free_port(), free_port()) for _ in range(3)]
    voters = ",".join(f"{node}@{HOST}:{control}" for node, (_, control) in enumerate(ports, 1))

    def make(node: int) -> Server:
        port, control = ports[node - 1]
        place = folder / f"node-{node}"
        listeners = f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{control}"
        settings = COMMON.format(voters=voters, node=node, folder=place) + REPLICATED + f"listeners={listeners}\n"
        return Server(place, settings, port, port)

    servers = await asyncio.gather(*(asyncio.to_thread(make, node) for node in (1, 2, 3)))
    try:
        for server in servers:
            server.start()
        for server in servers:
            await asyncio.to_thread(server.wait)
        yield servers
    finally:
        for server in servers:
            await asyncio.to_thread(server.end)


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[Server]:
    """One that takes clients over TLS and with a password alone, and lets nobody but alice do anything."""
    certify(folder)
    port, plain, control = free_port(), free_port(), free_port()
    users = " ".join(f'user_{user}="{password}"' for user, password in USERS.items())
    listeners = f"SASL_SSL://{HOST}:{port},PLAINTEXT://{HOST}:{plain},CONTROLLER://{HOST}:{control}"
    settings = COMMON.format(voters=f"1@{HOST}:{control}", node=1, folder=folder) + ALONE
    settings += GUARDED.format(users=users, folder=folder) + f"listeners={listeners}\n"
    server = Server(folder, settings, port, plain, scram=True)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.end()


@contextlib.contextmanager
def sharing(folder: Path, *, features: Sequence[str] = ()) -> Iterator[Server]:
    """One that takes locks of share groups that are shorter than by default, for tests that wait for their end."""
    port, control = free_port(), free_port()
    settings = COMMON.format(voters=f"1@{HOST}:{control}", node=1, folder=folder) + ALONE + SHARING
    settings += f"listeners=PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{control}\n"
    server = Server(folder, settings, port, port, features=features)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.end()


def certify(folder: Path) -> None:
    """A certificate for this address, and the authority that signed it."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    folder.mkdir(parents=True, exist_ok=True)
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*new, "-subj", "/CN=an authority of tests", "-keyout", "ca.key", "-out", CA)
    openssl(
        "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={HOST}", "-keyout", "key.pem", "-out", "csr.pem"
    )
    (folder / "san").write_text(f"subjectAltName=IP:{HOST}\n")
    signed = ("-CA", CA, "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san", "-out", "cert.pem")
    openssl("x509", "-req", "-in", "csr.pem", *signed)
    (folder / "server.pem").write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
