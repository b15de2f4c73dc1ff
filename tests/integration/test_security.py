"""TLS and SASL against a real broker that insists on them: every kind of client, by `kafka_options` alone."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import SecretStr

from streams.compacted import CompactedView
from streams.config import SecuritySettings, Settings
from streams.doctor import Level
from streams.doctor.broker import check_address
from streams.embedded import EmbeddedKafka
from streams.embedded.probe import HOST, free_port
from streams.errors import BanditError
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward
from streams.experiments.store import ExperimentStore
from streams.topics import check_topics, create_topics

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command"),
]

USER, PASSWORD = "bandit", "correct horse"
RECORD = ExperimentRecord(
    experiment_id="e",
    revision=1,
    status="live",
    arms=(Arm(arm_id="a"), Arm(arm_id="b")),
    control="a",
    versions=(Counting(version=1, effective_from_ms=0, reward=Reward(metric="buy")),),
)


class Secure(NamedTuple):
    """Addresses of the listeners, and the authority that signed the broker's certificate."""

    sasl_ssl: str
    mutual: str
    cafile: Path
    client: Path
    client_key: Path


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def certificates(folder: Path) -> None:
    """Make an authority, and a certificate signed by it for the broker and for a client."""
    openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", 2, "-subj", "/CN=authority",
        "-keyout", folder / "ca.key", "-out", folder / "ca.pem",
    )  # fmt: skip
    for name in ("broker", "client"):
        openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
            "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr",
        )  # fmt: skip
        names = folder / f"{name}.cnf"
        names.write_text(f"subjectAltName=IP:{HOST}", encoding="utf-8")
        openssl(
            "x509", "-req", "-in", folder / f"{name}.csr", "-days", 2, "-CAcreateserial", "-extfile", names,
            "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-out", folder / f"{name}.pem",
        )  # fmt: skip
    store = folder.joinpath("broker.key").read_text() + folder.joinpath("broker.pem").read_text()
    folder.joinpath("broker-store.pem").write_text(store)


def broker_settings(folder: Path, plain: int, sasl_ssl: int, mutual: int, controller: int) -> dict[str, str]:
    listeners = ",".join(
        f"{name}://{HOST}:{port}"
        for name, port in [
            ("PLAINTEXT", plain),
            ("SECURE", sasl_ssl),
            ("MUTUAL", mutual),
            ("CONTROLLER", controller),
        ]
    )
    module = "org.apache.kafka.common.security"
    return {
        "listeners": listeners,
        "advertised.listeners": listeners,
        "controller.quorum.bootstrap.servers": f"{HOST}:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,"
        "MUTUAL:SSL,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker-store.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.secure.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.secure.plain.sasl.jaas.config": f"{module}.plain.PlainLoginModule required"
        f' user_{USER}="{PASSWORD}";',
        "listener.name.secure.scram-sha-256.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
    }


class KafkaWithUsers(EmbeddedKafka):
    """Gives the user its SCRAM credentials when the storage is formatted: no other tool is at hand."""

    def _command(self, java: Path, classpath: str, main: str, *arguments: str) -> list[str]:
        command = super()._command(java, classpath, main, *arguments)
        if main == "kafka.tools.StorageTool":
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                command += ["--add-scram", f'{mechanism}=[name="{USER}",password="{PASSWORD}"]']
        return command


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("certificates")
    certificates(folder)
    plain, sasl_ssl, mutual, controller = ports = [free_port() for _ in range(4)]
    assert len(set(ports)) == 4
    with KafkaWithUsers(port=plain, settings=broker_settings(folder, plain, sasl_ssl, mutual, controller)):
        yield Secure(
            f"{HOST}:{sasl_ssl}",
            f"{HOST}:{mutual}",
            folder / "ca.pem",
            folder / "client.pem",
            folder / "client.key",
        )


def settings_for(address: str, prefix: str, **security: Any) -> Settings:
    return Settings(
        bootstrap_servers=address,
        topic_prefix=prefix,
        partitions=1,
        counts_partitions=1,
        replication_factor=1,
        min_insync_replicas=1,
        security=SecuritySettings(**security),
    )


async def use_every_client(settings: Settings) -> None:
    """Admin client, producer and consumer."""
    await create_topics(settings)
    assert await check_topics(settings) == []
    async with ExperimentStore(settings) as store:
        await store.write(RECORD)
        assert store.get("e") == RECORD


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_password_over_tls(secure: Secure, topic_prefix: str, mechanism: Any) -> None:
    security = {
        "protocol": "SASL_SSL",
        "sasl_mechanism": mechanism,
        "sasl_username": USER,
        "cafile": secure.cafile,
    }
    await use_every_client(
        settings_for(secure.sasl_ssl, topic_prefix, **security, sasl_password=SecretStr(PASSWORD))
    )
    wrong = settings_for(secure.sasl_ssl, topic_prefix, **security, sasl_password=SecretStr("wrong"))
    with pytest.raises(BanditError):
        await check_topics(wrong)
    view = CompactedView(wrong, "experiments", decode_key=bytes, decode_value=lambda _, value: value)
    with pytest.raises(BanditError):
        await view.start()


async def test_mutual_tls(secure: Secure, topic_prefix: str) -> None:
    certificate = {"certfile": secure.client, "keyfile": secure.client_key}
    await use_every_client(
        settings_for(secure.mutual, topic_prefix, protocol="SSL", cafile=secure.cafile, **certificate)
    )


async def test_an_unknown_authority_is_refused(secure: Secure, topic_prefix: str) -> None:
    """Without its authority the broker's certificate is not believed, whoever asks."""
    settings = settings_for(
        secure.sasl_ssl,
        topic_prefix,
        protocol="SASL_SSL",
        sasl_username=USER,
        sasl_password=SecretStr(PASSWORD),
    )
    with pytest.raises(BanditError):
        await check_topics(settings)


GOOD = {"protocol": "SASL_SSL", "sasl_username": USER, "sasl_password": SecretStr(PASSWORD)}


@pytest.mark.parametrize(
    ("listener", "security", "words"),
    [
        ("sasl_ssl", {}, ""),
        ("sasl_ssl", {"sasl_password": SecretStr("wrong")}, "refused user or password"),
        (
            "sasl_ssl",
            {"sasl_password": SecretStr("wrong"), "sasl_mechanism": "PLAIN"},
            "refused user or password",
        ),
        ("sasl_ssl", {"sasl_username": "nobody"}, "refused user or password"),
        ("sasl_ssl", {"cafile": None}, "certificate is not accepted"),
        ("sasl_ssl", {"protocol": "SASL_PLAINTEXT", "cafile": None}, "security.protocol"),
        ("mutual", {"protocol": "SSL", "sasl_username": None, "sasl_password": None}, "client certificate"),
    ],
)
async def test_the_doctor_says_which_step_fails_and_what_to_do(
    secure: Secure, topic_prefix: str, listener: str, security: dict[str, Any], words: str
) -> None:
    chosen = {**GOOD, "cafile": secure.cafile, **security}
    settings = settings_for(getattr(secure, listener), topic_prefix, **chosen)
    (finding,) = await check_address(settings)
    if words:
        assert finding.level is Level.FAIL
        assert words in f"{finding.what}; {finding.action}"
        assert PASSWORD not in str(finding)
    else:
        assert finding.level is Level.OK
