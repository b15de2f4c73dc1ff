"""Settings: one frozen object for every process of the product.

Each value comes from, in this order: an argument, an environment variable (``BANDIT_PARTITIONS``, nested
``BANDIT_SECURITY__PROTOCOL``), the TOML file given by ``--config`` or ``BANDIT_CONFIG``, the default. Keys
that the file has and the model has not are errors: a misspelt setting must not quietly leave its default in
force. Unknown *environment* variables are not, because container platforms put their own ``BANDIT_*`` there
when a service is called "bandit".

One inside unit each, named last: ``_ms`` milliseconds, ``_bytes``. Reading them costs some milliseconds,
once.
"""

import os
import re
import socket
import ssl
import tomllib
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from pydantic_settings.sources import InitSettingsSource

from streams.errors import ConfigError

TopicName = Literal[
    "exposures",
    "conversions",
    "experiments",
    "journal",
    "counts",
    "allocation-log",
    "allocations",
    "results",
    "dead-letters",
]
TOPIC_NAMES: tuple[TopicName, ...] = get_args(TopicName)

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
MIB = 1024 * 1024

CONFIG_VARIABLE = "BANDIT_CONFIG"
_TOPIC_PREFIX = re.compile(r"[A-Za-z0-9._-]{0,200}")
_file_values: ContextVar[dict[str, Any] | None] = ContextVar("_file_values", default=None)


class SecuritySettings(BaseModel):
    """TLS and SASL for every Kafka client."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="How to talk to the brokers."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="How to authenticate where the protocol is SASL_*."
    )
    sasl_username: str | None = Field(default=None, description="User for SASL_*.")
    sasl_password: SecretStr | None = Field(default=None, description="Password for SASL_*.")
    cafile: Path | None = Field(
        default=None,
        description="PEM file with the authorities that sign the brokers' certificates; none: the system's.",
    )
    certfile: Path | None = Field(
        default=None, description="PEM file with this client's certificate, for mutual TLS."
    )
    keyfile: Path | None = Field(default=None, description="PEM file with the private key of `certfile`.")
    keyfile_password: SecretStr | None = Field(default=None, description="Password of `keyfile`.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.protocol.startswith("SASL") and (self.sasl_username is None or self.sasl_password is None):
            raise ValueError(f"protocol {self.protocol} needs sasl_username and sasl_password; set both")
        if not self.protocol.startswith("SASL") and self.sasl_password is not None:
            raise ValueError(
                f"sasl_password is set but protocol {self.protocol} would not use it; set protocol to"
                f" SASL_SSL"
            )
        if not self.protocol.endswith("SSL") and (self.cafile or self.certfile):
            raise ValueError(
                f"certificates are set but protocol {self.protocol} would not use them; set SSL or SASL_SSL"
            )
        if (self.certfile is None) != (self.keyfile is None):
            raise ValueError("certfile and keyfile go together; set both or neither")
        return self


class RocksDBSettings(BaseModel):
    """Memory of the partition databases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_cache_bytes: int = Field(
        default=256 * MIB, ge=MIB, description="Block cache, one for all partition databases of the process."
    )
    write_buffer_bytes: int = Field(
        default=32 * MIB,
        ge=MIB,
        description="Write buffer of each partition database; a worker that was killed reads up to three of "
        "them from the journal again.",
    )


class GenerateSettings(BaseModel):
    """The endpoint that generates proposals for new arms."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(
        default=None,
        description="Base URL of an OpenAI-compatible API, e.g. `https://api.example.org/v1`; none: nothing"
        " is generated.",
    )
    api_key: SecretStr | None = Field(default=None, description="Its key, sent as a bearer token.")
    model: str = Field(default="", max_length=200, description="Name of the model there.")
    timeout_ms: int = Field(default=30_000, ge=100, le=600_000, description="Longest wait for one answer.")
    max_attempts: int = Field(
        default=3, ge=1, le=10, description="Most requests for one answer; the first one is one of them."
    )
    max_answer_tokens: int = Field(default=1000, ge=1, le=1_000_000, description="Longest answer.")
    moderation: Literal["none", "endpoint"] = Field(
        default="none",
        description="Who judges generated content: nobody but the people who approve it, or the endpoint's"
        " `/moderations`.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.url is not None and not re.fullmatch(r"https?://[^\s?#]+", self.url):
            raise ValueError(f"url {self.url!r} is not the base of an HTTP API; write e.g. https://host/v1")
        if self.url is not None and not self.model:
            raise ValueError("url is set but no model; name the model that the endpoint is to use")
        return self


class Settings(BaseSettings):
    """Everything that can be set. Frozen; safe to share between threads and tasks."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="BANDIT_", env_nested_delimiter="__", case_sensitive=False
    )

    # Kafka
    bootstrap_servers: str = Field(
        default="localhost:9092",
        min_length=1,
        description="Brokers to start from, `host:port`, separated by commas.",
    )
    security: SecuritySettings = Field(default=SecuritySettings())
    topic_prefix: str = Field(
        default="",
        description="Put before every topic's name, so that several installations can share a cluster.",
    )
    partitions: int = Field(
        default=8,
        ge=1,
        le=4096,
        description="Partitions of exposures, conversions and journal. Growing it is a migration.",
    )
    counts_partitions: int = Field(
        default=4, ge=1, le=1024, description="Partitions of counts, allocation-log, allocations and results."
    )
    replication_factor: int = Field(default=3, ge=1, le=32767, description="Replicas of every topic.")
    min_insync_replicas: int = Field(
        default=2, ge=1, le=32767, description="Replicas that must have a record before it counts as written."
    )
    source_retention_ms: int = Field(
        default=7 * DAY_MS, ge=HOUR_MS, description="How long exposures and conversions are kept."
    )
    dead_letters_retention_ms: int = Field(
        default=30 * DAY_MS, ge=HOUR_MS, description="How long dead letters are kept."
    )
    allocation_log_retention_ms: int = Field(
        default=400 * DAY_MS,
        ge=DAY_MS,
        description="How long every published allocation is kept for `audit`.",
    )
    allocations_delete_retention_ms: int = Field(
        default=7 * DAY_MS,
        ge=7 * DAY_MS,
        description="How long a deleted allocation's tombstone stays for edges that were away.",
    )
    journal_max_message_bytes: int = Field(
        default=8 * MIB,
        ge=MIB,
        le=1024 * MIB,
        description="Largest journal record: `max.message.bytes` of that topic.",
    )

    # Worker
    group: str = Field(
        default="bandit", min_length=1, max_length=200, description="Consumer group of the workers."
    )
    worker_id: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=200,
        description="Name of this worker in logs and claims. Default: the host's name.",
    )
    data_dir: Path = Field(
        default=Path("bandit-data"),
        description="Where this worker's partition databases are; they can be rebuilt from the journal.",
    )
    standby_replicas: int = Field(
        default=0, ge=0, le=10, description="Warm copies of each partition on other workers."
    )
    batch_max_records: int = Field(
        default=8000, ge=1, le=1_000_000, description="Most source records in one batch."
    )
    batch_max_bytes: int = Field(default=MIB, ge=1024, description="Most source bytes in one batch.")
    compiled_kernel: bool = Field(
        default=True,
        description="Use the compiled kernel of the join, where it was built; the counts are the same "
        "without it, and take about four times as long.",
    )
    unit_cache_bytes: int = Field(
        default=128 * MIB,
        ge=0,
        description="Memory for the units that were changed last, in all partitions of the process; 0: none.",
    )
    sweep_interval_ms: int = Field(
        default=HOUR_MS,
        ge=1000,
        description="Longest time between the starts of two sweeps of a partition's journal.",
    )
    sweep_max_bytes: int = Field(
        default=256 * MIB,
        ge=MIB,
        description="Journal bytes appended since the last sweep that start the next one.",
    )
    counts_flush_ms: int = Field(
        default=500,
        ge=10,
        description="How often changed cells go to the counts topic; up to 5 s where thousands change.",
    )
    session_timeout_ms: int = Field(
        default=10_000,
        ge=1000,
        le=300_000,
        description="A worker that is silent for this long loses its partitions to the others.",
    )
    idle_after_ms: int = Field(
        default=30_000,
        ge=0,
        description="A source partition silent for this long (wall clock) no longer holds up the watermark;"
        " 0: it always does.",
    )
    recovery_deadline_ms: int = Field(
        default=30 * MINUTE_MS,
        ge=1000,
        description="Longest rebuild of a partition before the worker gives up and exits.",
    )
    stall_deadline_ms: int = Field(
        default=2 * MINUTE_MS,
        ge=1000,
        description="A partition with lag that does not move for this long is a stall.",
    )
    shutdown_deadline_ms: int = Field(
        default=20_000,
        ge=100,
        description="Longest orderly stop; what is not finished is redone by the next owner.",
    )

    # Counting
    grace_ms: int = Field(
        default=DAY_MS,
        ge=0,
        description="An event older than its partition's newest by more than this is late.",
    )
    max_ahead_ms: int = Field(
        default=5 * MINUTE_MS,
        ge=0,
        description="An event dated later than its append time by more than this is future.",
    )
    unit_max_events: int = Field(
        default=10_000, ge=1, description="Most events kept of one unit; beyond it, dead letter `unit_limit`."
    )
    definition_lead_ms: int = Field(
        default=MINUTE_MS,
        ge=100,
        description="Least time between writing a new counting version and its effect; a worker whose view"
        " of the definitions is older stops counting.",
    )

    # Allocating
    clock: Literal["wall", "stream"] = Field(
        default="wall", description="`wall` in production; `stream` (event time) for replays and tests."
    )
    settle_ms: int = Field(
        default=MINUTE_MS,
        ge=0,
        description="Longest wait after a boundary for watermarks before the interval is closed.",
    )
    allocation_max_age_ms: int = Field(
        default=6 * HOUR_MS,
        ge=1000,
        description="An edge with an allocation older than this gives the default arm.",
    )

    # Watching
    web_host: str = Field(
        default="0.0.0.0",  # noqa: S104 - probes and Prometheus come from other hosts
        description="Address of /metrics, /livez and /readyz.",
    )
    web_port: int = Field(
        default=8080, ge=0, le=65535, description="Its port; 0: any free one, which is logged."
    )
    metrics_max_experiments: int = Field(
        default=200,
        ge=1,
        description="Experiments with metrics of their own; further ones share the label `other`.",
    )
    rocksdb: RocksDBSettings = Field(default=RocksDBSettings())

    # Proposing
    generate: GenerateSettings = Field(default=GenerateSettings())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_insync_replicas > self.replication_factor:
            raise ValueError(
                f"min_insync_replicas {self.min_insync_replicas} exceeds replication_factor"
                f" {self.replication_factor}: nothing could be written; lower the first"
            )
        if not _TOPIC_PREFIX.fullmatch(self.topic_prefix):
            raise ValueError(
                f"topic_prefix {self.topic_prefix!r} has characters that Kafka does not allow;"
                " use at most 200 letters, digits, '.', '_' and '-'"
            )
        if self.batch_max_bytes * 2 > self.journal_max_message_bytes:
            raise ValueError(
                f"batch_max_bytes {self.batch_max_bytes} leaves no room in a journal record of"
                f" {self.journal_max_message_bytes}; set it to at most half of journal_max_message_bytes"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over the TOML file; no .env files, no secrets directory."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, InitSettingsSource(settings_cls, _file_values.get() or {})

    def topic(self, name: TopicName) -> str:
        """Full name of a topic, e.g. ``topic("exposures")`` is ``shop-exposures`` with prefix ``shop-``."""
        return f"{self.topic_prefix}{name}"

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS context for the brokers; ``None`` where the protocol has no TLS.

        Raises
        ------
        ConfigError
            If a certificate or key file cannot be read.
        """
        security = self.security
        if not security.protocol.endswith("SSL"):
            return None
        try:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=security.cafile)
            if security.certfile is not None:
                password = security.keyfile_password
                context.load_cert_chain(
                    security.certfile, security.keyfile, password.get_secret_value() if password else None
                )
        except OSError as error:
            raise ConfigError(
                f"TLS files cannot be read: {error}",
                where="security",
                action="check cafile, certfile, keyfile and keyfile_password",
            ) from error
        return context

    def kafka_options(self) -> dict[str, Any]:
        """Keyword arguments for any aiokafka client: addresses, TLS and SASL; made anew at each call."""
        security = self.security
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": security.protocol,
        }
        if (context := self.ssl_context()) is not None:
            options["ssl_context"] = context
        if security.protocol.startswith("SASL") and security.sasl_password is not None:
            options["sasl_mechanism"] = security.sasl_mechanism
            options["sasl_plain_username"] = security.sasl_username
            options["sasl_plain_password"] = security.sasl_password.get_secret_value()
        return options


def load_settings(config: Path | str | None = None, **overrides: Any) -> Settings:
    """Read settings from arguments, environment, the TOML file and defaults.

    Parameters
    ----------
    config
        TOML file; none: the one named by ``BANDIT_CONFIG``, if that is set.
    **overrides
        Values that win over everything else.

    Raises
    ------
    ConfigError
        If the file cannot be read, has an unknown key, or a value is wrong. All problems are named, with
        where each value is to be set; values of secrets never.
    """
    path = config if config is not None else os.environ.get(CONFIG_VARIABLE) or None
    token = _file_values.set(_read_toml(Path(path)) if path is not None else {})
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(_problem(details) for details in error.errors()),
            where=str(path) if path is not None else "settings",
            action="correct it in the file or the environment; `bandit-streams config show` prints what is"
            " in force",
        ) from error
    except SettingsError as error:
        raise ConfigError(
            str(error), where="environment", action="write nested values as BANDIT_SECURITY__PROTOCOL=..."
        ) from error
    finally:
        _file_values.reset(token)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"settings file cannot be read: {error}",
            where=str(path),
            action=f"check --config and {CONFIG_VARIABLE}",
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}", where=str(path), action="correct the file") from error


def _problem(details: Any) -> str:
    path = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return f"{path}: unknown setting; see docs/configuration.md for those there are"
    message = str(details["msg"]).removeprefix("Value error, ")
    variable = "BANDIT_" + "__".join(str(part) for part in details["loc"]).upper()
    return f"{path} ({variable}): {message}" if path else message
