"""A real Apache Kafka broker for the tests: found, or started from the jars that tests/broker/pom.xml names.

One KRaft node (broker and controller) on loopback, in the foreground of nobody: `kill` is a kill -9, `start` opens
the same port on the same data again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from tests.ports import broker_ports

ROOT = Path(__file__).resolve().parent.parent
POM = ROOT / "tests" / "broker" / "pom.xml"

HOW_TO_GET_ONE = (
    "no Kafka broker: set STREAMLEARN_TEST_KAFKA=host:port, or put Java 17 and Maven on PATH"
    " (the broker's jars are then fetched once, about 45 MB)"
)

#: The user that the SASL listeners know, by PLAIN and by both SCRAM mechanisms.
SASL_USER, SASL_PASSWORD = "alice", "alice-secret"

#: The listeners beside the plain one: what a client speaks, and what the listener asks of its certificate.
_SECURE = {
    "SASL": ("SASL_PLAINTEXT", "none"),
    "SASLTLS": ("SASL_SSL", "none"),
    "TLS": ("SSL", "none"),
    "MTLS": ("SSL", "required"),
}


class BrokerUnavailable(Exception):
    """There is no broker, and none can be started here."""


class KafkaBroker:
    """A broker the tests talk to.

    Attributes:
        bootstrap: "host:port", no authentication.
        secure: "host:port" by listener, of a broker of our own: SASL and SASLTLS (PLAIN, SCRAM, OAUTHBEARER with
            unsecured tokens), TLS, MTLS.
        proxied: where the listener PROXIED is, and where it says that it is: there a test puts its proxy.
        certificates: a folder with ca.pem, client.pem (certificate and key), stranger.pem (of another authority).
    """

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.secure: dict[str, str] = {}
        self.proxied = (0, 0)
        self.certificates = Path()

    @property
    def is_own(self) -> bool:
        """Whether the broker is ours: to kill and start, with a SASL listener."""
        return False

    def create_topic(self, name: str, partitions: int = 1, configs: dict[str, str] | None = None) -> str:
        """Create a topic and return its name once it can be read."""
        with self.admin() as admin:
            admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs or {})])
        return name

    @contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        """An admin client for a `with` block."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            yield admin
        finally:
            admin.close()

    def kill(self) -> None:
        """Kill -9."""
        raise NotImplementedError("a broker that was found is not ours to kill")

    def start(self) -> None:
        """Start again after `kill`, on the same port and data; returns when it accepts connections."""
        raise NotImplementedError("a broker that was found is not ours to start")

    def ensure_running(self) -> None:
        """Start it again if a test left it dead, or it died by itself."""

    def close(self) -> None:
        """Stop for good."""


class LocalKafkaBroker(KafkaBroker):
    """A broker of our own, in a child process."""

    def __init__(self, jars: Path, folder: Path) -> None:
        port, controller_port, proxied_port, proxy_port, *secure_ports = broker_ports(4 + len(_SECURE))
        super().__init__(f"127.0.0.1:{port}")
        self.secure = {name: f"localhost:{number}" for name, number in zip(_SECURE, secure_ports, strict=True)}
        self.proxied = (proxied_port, proxy_port)
        self.certificates = folder
        self._ports = (port, proxied_port, *secure_ports)
        self._java = [
            *("java", "-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            *("-cp", f"{jars}/*"),
        ]
        self._config = folder / "server.properties"
        self._log = folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        _issue_certificates(folder)
        self._config.write_text(
            _server_properties(
                folder, port, controller_port, self.proxied, dict(zip(_SECURE, secure_ports, strict=True))
            )
        )
        users = [
            flag
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for flag in ("--add-scram", f"{mechanism}=[name={SASL_USER},password={SASL_PASSWORD}]")
        ]
        self._run("kafka.tools.StorageTool", "format", "-t", _cluster_id(), "-c", str(self._config), *users)
        self.start()

    @property
    def is_own(self) -> bool:
        return True

    def start(self) -> None:
        assert self._process is None, "the broker is running"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(self._config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, not for the broker
            )
        deadline = time.monotonic() + 60
        while not all(_accepts(port) for port in self._ports):
            try:
                code = self._process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                code = None
            self.kill()
            raise BrokerUnavailable(f"the broker did not start (exit code {code}):\n{self._tail()}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ensure_running(self) -> None:
        if self._process is not None and (code := self._process.poll()) is not None:
            print(f"the broker has ended with exit code {code}:\n{self._tail()}")  # for the test that now fails
            self._process = None
        if self._process is None:
            self.start()

    def close(self) -> None:
        self.kill()

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]

    def _run(self, *command: str) -> None:
        done = subprocess.run([*self._java, *command], capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise BrokerUnavailable(f"{command[0]} failed: {done.stdout}{done.stderr}")


def find_broker(folder: Path) -> KafkaBroker:
    """The broker of STREAMLEARN_TEST_KAFKA, or a new one with its data in `folder`.

    Raises:
        BrokerUnavailable: neither is possible; the message says how to get one.
    """
    if bootstrap := os.environ.get("STREAMLEARN_TEST_KAFKA"):
        return KafkaBroker(bootstrap)
    if not shutil.which("java"):
        raise BrokerUnavailable(HOW_TO_GET_ONE)
    return LocalKafkaBroker(_jars(), folder)


def _jars() -> Path:
    """The folder of the broker's jars, fetched by Maven the first time."""
    folder = ROOT / ".cache" / "kafka" / hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    if folder.is_dir():
        return folder
    if not shutil.which("mvn"):
        raise BrokerUnavailable(HOW_TO_GET_ONE)
    # Aside and renamed: an interrupted download, or two test runs at once, must not leave half a class path.
    aside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    maven = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    done = subprocess.run(
        [*maven, f"-DoutputDirectory={aside}"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise BrokerUnavailable(f"Maven could not fetch the broker's jars: {done.stdout[-2000:]}")
    try:
        aside.rename(folder)
    except OSError:  # the other run was first
        shutil.rmtree(aside)
    return folder


def _issue_certificates(folder: Path) -> None:
    """An authority, the broker's certificate, a client's, and one that the broker does not trust."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, issuer, subject in (
        ("broker", authority, "localhost"),
        ("client", authority, "streamlearn@example.org"),
        ("stranger", trustme.CA(), "stranger@example.org"),
    ):
        issued = issuer.issue_cert(subject)
        key = load_pem_private_key(issued.private_key_pem.bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )  # the only form that the broker reads
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        (folder / f"{name}.pem").write_bytes(key + chain)


def _server_properties(
    folder: Path, port: int, controller_port: int, proxied: tuple[int, int], secure: dict[str, int]
) -> str:
    login = "org.apache.kafka.common.security"
    names = ["PLAINTEXT", *secure]
    at = {"PLAINTEXT": f"127.0.0.1:{port}", **{name: f"localhost:{number}" for name, number in secure.items()}}
    protocols = dict.fromkeys(("PLAINTEXT", "PROXIED", "CONTROLLER"), "PLAINTEXT") | {
        n: p for n, (p, _) in _SECURE.items()
    }
    mechanisms = {
        "plain": f'{login}.plain.PlainLoginModule required user_{SASL_USER}="{SASL_PASSWORD}";',
        "scram-sha-256": f"{login}.scram.ScramLoginModule required;",
        "scram-sha-512": f"{login}.scram.ScramLoginModule required;",
        # Without a validator of its own the broker takes unsecured tokens, as it says, for tests.
        "oauthbearer": f'{login}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";',
    }
    listeners = ",".join(f"{name}://{at[name]}" for name in names)
    bound, advertised = (f",PROXIED://127.0.0.1:{number}" for number in proxied)
    return "\n".join(
        [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@127.0.0.1:{controller_port}",
            f"listeners={listeners}{bound},CONTROLLER://127.0.0.1:{controller_port}",
            f"advertised.listeners={listeners}{advertised}",
            "listener.security.protocol.map=" + ",".join(f"{name}:{p}" for name, p in protocols.items()),
            "controller.listener.names=CONTROLLER",
            "sasl.enabled.mechanisms=" + ",".join(mechanisms).upper(),
            *(
                f"listener.name.{name.lower()}.{mechanism}.sasl.jaas.config={module}"
                for name, (protocol, _) in _SECURE.items()
                if protocol.startswith("SASL")
                for mechanism, module in mechanisms.items()
            ),
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={folder / 'broker.pem'}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={folder / 'ca.pem'}",
            *(f"listener.name.{name.lower()}.ssl.client.auth={wanted}" for name, (_, wanted) in _SECURE.items()),
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found=true",
            "super.users=User:ANONYMOUS",
            f"log.dirs={folder / 'data'}",
            "offsets.topic.replication.factor=1",
            "offsets.topic.num.partitions=1",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "transaction.state.log.num.partitions=1",
            "group.initial.rebalance.delay.ms=0",
            # A killed broker may come back only when its old session has ended: 9 s by default.
            "broker.session.timeout.ms=1500",
            "broker.heartbeat.interval.ms=250",
            "group.min.session.timeout.ms=1000",
            "message.max.bytes=16777216",
            "log.cleaner.enable=false",
            "",
        ]
    )


def _cluster_id() -> str:
    return "c3RyZWFtbGVhcm50ZXN0cw"  # 16 bytes in base64, as Kafka wants them


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
