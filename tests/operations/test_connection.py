"""Why a broker cannot be reached, in words: every case against a real socket, most against a real broker."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka import errors as kafka_errors

from streams.config import SecuritySettings, Settings
from streams.connection import bootstrap_addresses, explain, probe
from streams.embedded import Broker
from streams.errors import BanditError, BrokerUnavailable, ConfigError, Fenced, Stop

FETCH_API = 1


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken and on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def secured(protocol: str, **more: object) -> Settings:
    if protocol.startswith("SASL"):
        more |= {"sasl_username": "u", "sasl_password": "p"}
    return Settings(security=SecuritySettings.model_validate({"protocol": protocol, **more}))


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("localhost:9092", [("localhost", 9092)]),
        ("a:1, b.example:65535", [("a", 1), ("b.example", 65535)]),
        ("[::1]:9092", [("::1", 9092)]),
    ],
)
def test_addresses(text: str, addresses: list[tuple[str, int]]) -> None:
    assert bootstrap_addresses(text) == addresses


@pytest.mark.parametrize(
    "text", ["", "localhost", "localhost:", ":9092", "a:b", "a:0", "a:65536", "a:1,,b:2"]
)
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is not host:port"):
        bootstrap_addresses(text)


async def failure(settings: Settings, host: str, port: int, timeout_ms: int = 5_000) -> BanditError:
    with pytest.raises(BanditError) as raised:
        await probe(settings, host, port, timeout_ms=timeout_ms)
    assert raised.value.where == f"broker {host}:{port}"
    assert raised.value.action
    return raised.value


async def test_nothing_listens(closed_port: int) -> None:
    error = await failure(Settings(), "127.0.0.1", closed_port)
    assert isinstance(error, BrokerUnavailable)
    assert error.what == "nothing listens on that port"


async def test_a_name_that_does_not_resolve() -> None:
    error = await failure(Settings(), "no-such-host.invalid", 9092)
    assert "does not resolve" in error.what


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """A port where connections are taken and nothing is ever answered."""

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_a_listener_that_never_answers(silent_port: int) -> None:
    error = await failure(Settings(), "127.0.0.1", silent_port, timeout_ms=200)
    assert error.what == "no answer in time"
    assert "firewall" in error.action


async def test_a_listener_that_hangs_up(closed_port: int) -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    error = await failure(Settings(), "127.0.0.1", server.sockets[0].getsockname()[1])
    server.close()
    assert error.what == "the broker closed the connection"
    assert "PLAINTEXT" in error.action


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A folder with cert.pem and key.pem, self-signed, for the name localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return tmp_path


async def test_a_certificate_that_is_not_accepted(certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    unknown = await failure(secured("SSL"), "127.0.0.1", port)
    assert "certificate is not accepted" in unknown.what
    assert "security.cafile" in unknown.action
    other_name = await failure(secured("SSL", cafile=certificate / "cert.pem"), "127.0.0.1", port)
    assert "certificate is not accepted" in other_name.what
    assert "advertised.listeners" in other_name.action
    server.close()


@pytest.mark.integration
async def test_a_broker_offers_its_apis(broker: Broker) -> None:
    host, port = bootstrap_addresses(broker.bootstrap_servers)[0]
    offer = await probe(Settings(), host, port)
    assert offer.apis[FETCH_API][1] >= 4


@pytest.mark.integration
async def test_tls_to_a_listener_without_tls(broker: Broker) -> None:
    host, port = bootstrap_addresses(broker.bootstrap_servers)[0]
    error = await failure(secured("SSL"), host, port, timeout_ms=3_000)
    assert "security.protocol" in error.action


@pytest.mark.integration
async def test_a_password_to_a_listener_without_sasl(broker: Broker) -> None:
    host, port = bootstrap_addresses(broker.bootstrap_servers)[0]
    error = await failure(secured("SASL_PLAINTEXT"), host, port, timeout_ms=3_000)
    assert "SASL" in error.what
    assert "sasl_mechanism" in error.action


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (kafka_errors.SaslAuthenticationFailed("bad"), ConfigError, "user or password"),
        (kafka_errors.UnsupportedSaslMechanismError("SCRAM"), ConfigError, "SASL mechanism"),
        (kafka_errors.TopicAuthorizationFailedError("t"), ConfigError, "access rules"),
        (kafka_errors.UnknownTopicOrPartitionError(), ConfigError, "missing"),
        (kafka_errors.KafkaConnectionError("Unable to bootstrap"), BrokerUnavailable, "Unable to bootstrap"),
        (kafka_errors.NotEnoughReplicasError(), BrokerUnavailable, "NotEnoughReplicas"),
        (kafka_errors.KafkaTimeoutError(), BrokerUnavailable, "Timeout"),
        (kafka_errors.PolicyViolationError("no"), Stop, "refused"),
        (ConnectionResetError(), BrokerUnavailable, "closed the connection"),
        (ssl.SSLError(1, "TLSV13_ALERT_CERTIFICATE_REQUIRED"), ConfigError, "TLS failed"),
    ],
)
def test_errors_of_kafka_and_tls_are_explained(error: Exception, kind: type[BanditError], words: str) -> None:
    explained = explain(error)
    assert isinstance(explained, kind)
    assert words in explained.what
    assert explained.action


def test_our_own_errors_stay_as_they_are_and_strangers_are_not_explained() -> None:
    ours = Fenced("claimed")
    assert explain(ours) is ours
    assert explain(ZeroDivisionError()) is None
