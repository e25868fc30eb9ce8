"""Logging in to a real broker: every mechanism, TLS both ways, secrets from files, and a sentence for each refusal."""

import base64
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from streamlearn.connectors.kafka import KafkaSource
from streamlearn.connectors.kafka_client import as_source_error
from streamlearn.errors import SettingsError, SourceRefusedError
from streamlearn.records import Position, Record, Rejected
from streamlearn.settings import KafkaSettings
from tests.kafka_broker import SASL_PASSWORD, SASL_USER, KafkaBroker
from tests.kafka_source import NewTopic, OpenSource, collect, numbers, options, send, trouble, until, values

pytestmark = pytest.mark.slow

PROTOCOLS = {"SASL": "SASL_PLAINTEXT", "SASLTLS": "SASL_SSL", "TLS": "SSL", "MTLS": "SSL"}


def secured(broker: KafkaBroker, topic: str, listener: str, client: dict[str, Any], **others: Any) -> KafkaSettings:
    tls = {"ssl_cafile": str(broker.certificates / "ca.pem")} if "TLS" in listener else {}
    return options(
        broker,
        topic,
        bootstrap_servers=[broker.secure[listener]],
        dead_letter_topic=f"{topic}-dlq",
        client={"security_protocol": PROTOCOLS[listener], **tls, **client},
        **others,
    )


def login(mechanism: str, password: str = SASL_PASSWORD) -> dict[str, Any]:
    return {"sasl_mechanism": mechanism, "sasl_plain_username": SASL_USER, "sasl_plain_password": password}


def assert_reads_and_writes(
    broker: KafkaBroker, topic: str, settings: KafkaSettings, open_source: OpenSource
) -> KafkaSource:
    """Records come, a commit arrives, a dead letter is acknowledged: consumer, admin client and producer got in."""
    send(broker, topic, numbers(3))
    source = open_source(settings)
    assert values(collect(source, 3)) == numbers(3)
    assert source.connected
    letters = source.dead_letters()
    letters.write(Rejected(Record(b"k", b"{", Position(topic, "0", 0)), "invalid_json", "validate", "no JSON"))
    letters.flush()
    letters.close()
    return source


@pytest.mark.parametrize("listener", ["SASL", "SASLTLS"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_lets_us_in(
    listener: str, mechanism: str, own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    assert_reads_and_writes(own_kafka, topic, secured(own_kafka, topic, listener, login(mechanism)), open_source)


def test_a_wrong_password_is_one_sentence_without_the_password(
    own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    settings = secured(own_kafka, new_topic(), "SASL", login("SCRAM-SHA-512", "not-the-password"))
    said = trouble(open_source(settings))
    assert isinstance(said, SourceRefusedError)
    assert "credentials" in str(said)
    assert "not-the-password" not in str(said)


def test_tls_alone_and_a_certificate_of_our_own_let_us_in(
    own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic, other = new_topic(), new_topic()
    assert_reads_and_writes(own_kafka, topic, secured(own_kafka, topic, "TLS", {}), open_source)
    ours = {"ssl_certfile": str(own_kafka.certificates / "client.pem")}
    assert_reads_and_writes(own_kafka, other, secured(own_kafka, other, "MTLS", ours), open_source)


@pytest.mark.parametrize(
    ("listener", "ca", "certificate"),
    [("TLS", "stranger.pem", None), ("MTLS", "ca.pem", None), ("MTLS", "ca.pem", "stranger.pem")],
    ids=["of a broker that we do not trust", "we have none", "of ours that the broker does not trust"],
)
def test_a_certificate_that_is_not_trusted_is_one_sentence(
    listener: str,
    ca: str,
    certificate: str | None,
    own_kafka: KafkaBroker,
    new_topic: NewTopic,
    open_source: OpenSource,
) -> None:
    folder = own_kafka.certificates
    client = {"ssl_cafile": str(folder / ca)}
    if certificate is not None:
        client["ssl_certfile"] = str(folder / certificate)
    said = trouble(open_source(secured(own_kafka, new_topic(), listener, client)))
    assert isinstance(said, SourceRefusedError)
    assert "TLS" in str(said)
    assert "ssl_cafile" in str(said)


def unsecured_token(lifetime_s: float = 600) -> str:
    """A JWS without a signature (RFC 7515, section 6), which a broker without a validator takes."""
    now = time.time()
    parts = [{"alg": "none"}, {"sub": SASL_USER, "iat": now, "exp": now + lifetime_s}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts) + "."


@pytest.mark.parametrize("listener", ["SASL", "SASLTLS"])
def test_a_token_from_a_file_lets_us_in(
    listener: str, own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource, tmp_path: Path
) -> None:
    topic, token = new_topic(), tmp_path / "token"
    token.write_text(unsecured_token() + "\n")
    assert_reads_and_writes(
        own_kafka, topic, secured(own_kafka, topic, listener, {}, oauth_token_file=token), open_source
    )


def test_a_token_that_is_none_is_one_sentence_and_a_good_one_in_its_file_is_taken_up(
    own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource, tmp_path: Path
) -> None:
    topic, token = new_topic(), tmp_path / "token"
    send(own_kafka, topic, numbers(1))
    token.write_text("no-token")
    source = open_source(secured(own_kafka, topic, "SASL", {}, oauth_token_file=token))
    said = trouble(source)
    assert isinstance(said, SourceRefusedError)
    assert "no-token" not in str(said)
    token.write_text(unsecured_token())
    assert values(collect(source, 1)) == numbers(1)


class Provider:
    """An OIDC token endpoint; what was asked is in `asked`."""

    def __init__(self) -> None:
        self.asked: list[dict[str, list[str]]] = []
        self.knows = "the-secret"
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                login = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
                provider.asked.append(form)
                allowed = login == f"streamlearn:{provider.knows}"
                answer = (
                    {"access_token": unsecured_token(), "token_type": "Bearer", "expires_in": 600}
                    if allowed
                    else {"error": "invalid_client"}
                )
                body = json.dumps(answer).encode()
                self.send_response(200 if allowed else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/token"


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def with_provider(own_kafka: KafkaBroker, provider: Provider, tmp_path: Path) -> Callable[[str, str], KafkaSettings]:
    def make(topic: str, secret: str) -> KafkaSettings:
        (tmp_path / "secret").write_text(secret)
        return secured(
            own_kafka,
            topic,
            "SASL",
            {},
            oauth_token_url=provider.url,
            oauth_client_id="streamlearn",
            oauth_client_secret_file=tmp_path / "secret",
            oauth_scope="kafka",
        )

    return make


def test_an_identity_provider_is_asked_for_one_token_that_all_logins_of_a_client_share(
    with_provider: Callable[[str, str], KafkaSettings],
    provider: Provider,
    own_kafka: KafkaBroker,
    new_topic: NewTopic,
    open_source: OpenSource,
) -> None:
    topic = new_topic()
    assert_reads_and_writes(own_kafka, topic, with_provider(topic, "the-secret"), open_source)
    assert provider.asked[0] == {"grant_type": ["client_credentials"], "scope": ["kafka"]}
    assert len(provider.asked) == 2  # the consumer's with its admin client, and the dead letters'


def test_a_provider_that_refuses_us_is_one_sentence_and_asked_again(
    with_provider: Callable[[str, str], KafkaSettings],
    provider: Provider,
    own_kafka: KafkaBroker,
    new_topic: NewTopic,
    open_source: OpenSource,
) -> None:
    topic = new_topic()
    send(own_kafka, topic, numbers(1))
    source = open_source(with_provider(topic, "wrong"))
    said = str(trouble(source))
    assert f"{provider.url} gives no token" in said
    assert "wrong" not in said
    assert not source.connected
    provider.knows = "wrong"
    assert values(collect(source, 1)) == numbers(1)
    until(lambda: source.connected)


@pytest.mark.parametrize("name", ["oauth_token_file", "client_secret_files"])
def test_a_file_of_a_secret_that_is_not_there_is_refused_at_once(name: str, kafka: KafkaBroker, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    given = {name: missing if name == "oauth_token_file" else {"sasl_plain_password": missing}}
    with pytest.raises(SettingsError, match=rf"kafka\.{name}.*nowhere"):
        KafkaSource(options(kafka, "clips", **given))


def test_an_identity_provider_without_its_login_is_refused() -> None:
    with pytest.raises(ValueError, match="oauth_client_id"):
        KafkaSettings(oauth_token_url="https://id.example.org/token")


@pytest.mark.parametrize(
    "given",
    [
        {"client_secret_files": {"sasl_plain_password": "hush"}},
        {"oauth_token_file": "hush"},
        {"oauth_token_url": "https://id.example.org", "oauth_client_id": "a", "oauth_client_secret_file": "hush"},
        {"schema_registry_url": "https://registry.example.org", "schema_registry_auth_file": "hush"},
    ],
)
def test_a_secret_in_the_place_of_its_file_is_not_repeated(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"No such file.*path of a file that holds the secret") as refused:
        KafkaSource(KafkaSettings(**given))
    assert "hush" not in "".join(traceback.format_exception(refused.value))


def test_what_a_client_says_of_a_url_is_told_without_its_login() -> None:
    said = as_source_error(ValueError("no proxy at socks5://alice:hush@proxy:1080"), KafkaSettings())
    assert "***@proxy:1080" in str(said)
    assert "hush" not in str(said)
