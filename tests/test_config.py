"""Settings: sources and their order, contradictions, secrets, and what Kafka clients get."""

import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from streams.config import (
    TOPIC_NAMES,
    RocksDBSettings,
    SecuritySettings,
    Settings,
    load_settings,
)
from streams.errors import ConfigError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep settings of the shell that runs the tests out of them."""
    for name in [name for name in os.environ if name.startswith("BANDIT_")]:
        monkeypatch.delenv(name)


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_order_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path, 'partitions = 5\ngroup = "file"\nclock = "stream"\n[rocksdb]\nblock_cache_bytes = 2097152'
    )
    monkeypatch.setenv("BANDIT_GROUP", "environment")
    monkeypatch.setenv("BANDIT_CLOCK", "wall")
    monkeypatch.setenv("BANDIT_ROCKSDB__WRITE_BUFFER_BYTES", "3145728")
    settings = load_settings(path, clock="stream")
    assert (settings.partitions, settings.group, settings.clock) == (5, "environment", "stream")
    assert settings.rocksdb == RocksDBSettings(block_cache_bytes=2_097_152, write_buffer_bytes=3_145_728)
    assert settings.counts_partitions == Settings().counts_partitions


def test_the_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BANDIT_CONFIG", str(write(tmp_path, "partitions = 3")))
    assert load_settings().partitions == 3
    # One file does not leak into settings made without one.
    monkeypatch.delenv("BANDIT_CONFIG")
    assert load_settings().partitions == Settings().partitions == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitons = 3", "partitons: unknown setting"),
        ("[security]\nprotocoll = 'SSL'", "security.protocoll: unknown setting"),
        ("partitions = 0", r"partitions \(BANDIT_PARTITIONS\): Input should be greater than or equal to 1"),
        ("clock = 'sun'", r"clock \(BANDIT_CLOCK\): Input should be 'wall' or 'stream'"),
        ("partitions = ", "not TOML"),
        ("min_insync_replicas = 4", "min_insync_replicas 4 exceeds replication_factor 3"),
        ("topic_prefix = 'a b'", "has characters that Kafka does not allow"),
        ("batch_max_bytes = 8000000", "at most half of journal_max_message_bytes"),
        ("allocations_delete_retention_ms = 1000", "BANDIT_ALLOCATIONS_DELETE_RETENTION_MS"),
        ("[security]\nprotocol = 'SASL_SSL'", "needs sasl_username and sasl_password"),
        ("[security]\nsasl_password = 'x'", "would not use it; set protocol to SASL_SSL"),
        ("[security]\ncafile = 'x'", "would not use them; set SSL or SASL_SSL"),
        ("[security]\nprotocol = 'SSL'\ncertfile = 'x'", "certfile and keyfile go together"),
    ],
)
def test_wrong_files_name_the_key_and_the_way_out(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 78


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"partitions.*; groups: unknown"):
        load_settings(write(tmp_path, 'partitions = "many"\ngroups = "x"'))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="check --config and BANDIT_CONFIG"):
        load_settings(tmp_path / "none.toml")


def test_a_wrong_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BANDIT_SECURITY", "{not json")
    with pytest.raises(ConfigError, match="BANDIT_SECURITY__PROTOCOL"):
        load_settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().partitions = 3


def test_topic_names_have_the_prefix() -> None:
    settings = Settings(topic_prefix="shop-")
    assert [settings.topic(name) for name in TOPIC_NAMES] == [f"shop-{name}" for name in TOPIC_NAMES]


def test_plaintext_options() -> None:
    assert Settings(bootstrap_servers="a:1,b:2").kafka_options() == {
        "bootstrap_servers": "a:1,b:2",
        "security_protocol": "PLAINTEXT",
    }


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_sasl_over_tls_options(mechanism: str) -> None:
    settings = load_settings(
        security={
            "protocol": "SASL_SSL",
            "sasl_mechanism": mechanism,
            "sasl_username": "bandit",
            "sasl_password": "hush",
        }
    )
    options = settings.kafka_options()
    context = options.pop("ssl_context")
    assert isinstance(context, ssl.SSLContext)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert options == {
        "bootstrap_servers": "localhost:9092",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": "bandit",
        "sasl_plain_password": "hush",
    }


def test_sasl_without_tls_has_no_context() -> None:
    security = SecuritySettings(
        protocol="SASL_PLAINTEXT", sasl_username="u", sasl_password=SecretStr("hush"), sasl_mechanism="PLAIN"
    )
    assert "ssl_context" not in Settings(security=security).kafka_options()


def test_unreadable_certificates_say_what_to_check(tmp_path: Path) -> None:
    settings = load_settings(security={"protocol": "SSL", "cafile": tmp_path / "none.pem"})
    with pytest.raises(ConfigError, match="check cafile, certfile, keyfile"):
        settings.kafka_options()


def test_mutual_tls_loads_certificate_and_key(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    settings = load_settings(
        security={"protocol": "SSL", "cafile": certificate, "certfile": certificate, "keyfile": key}
    )
    context = settings.kafka_options()["ssl_context"]
    assert context.cert_store_stats()["x509"] == 1
    broken = load_settings(
        security={"protocol": "SSL", "cafile": certificate, "certfile": certificate, "keyfile": certificate}
    )
    with pytest.raises(ConfigError, match="TLS files cannot be read"):
        broken.kafka_options()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make a certificate and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "2"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def test_secrets_are_in_no_text(tmp_path: Path) -> None:
    settings = load_settings(
        security={"protocol": "SASL_SSL", "sasl_username": "u", "sasl_password": "hush-hush"}
    )
    assert "hush-hush" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, "[security]\nprotocol = 'PLAINTEXT'\nsasl_password = 'hush-hush'"))
    assert "hush-hush" not in str(caught.value)


def test_toml_is_read_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b'group = "\xff"')
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(path)
