"""Reaching a broker, and saying in words why it cannot be reached.

What: `probe` opens one connection to one address with the settings' TLS and SASL and returns what the
broker offers; `explain` turns errors of sockets, TLS and aiokafka into errors of `streams.errors` that
say what to do.

Why this way: a client that starts tries every address and reports only that none worked; which step
failed (name, port, certificate, password) is what a person needs.

Cost: one connection a call.
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import NamedTuple

from aiokafka import errors as kafka_errors
from aiokafka.conn import create_conn

from streams.config import Settings
from streams.errors import BanditError, BrokerUnavailable, ConfigError, Stop

__all__ = ["Offer", "bootstrap_addresses", "explain", "probe"]

_DOCTOR = "check bootstrap_servers and that the broker runs; `bandit-streams doctor` tells which step fails"


class Offer(NamedTuple):
    """What a broker answered; ``apis`` maps API keys to their least and greatest version."""

    host: str
    port: int
    apis: Mapping[int, tuple[int, int]]


def bootstrap_addresses(bootstrap_servers: str) -> list[tuple[str, int]]:
    """Split ``host:port,[::1]:port`` into its parts.

    Raises
    ------
    ConfigError
        If a part is not ``host:port``.
    """
    addresses = []
    for part in bootstrap_servers.split(","):
        host, _, port = part.strip().rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"{part.strip()!r} is not host:port",
                where="bootstrap_servers (BANDIT_BOOTSTRAP_SERVERS)",
                action="write host:port, several separated by commas",
            )
        addresses.append((host.strip("[]"), int(port)))
    return addresses


async def probe(settings: Settings, host: str, port: int, *, timeout_ms: int = 5_000) -> Offer:
    """Connect, authenticate and ask for the API versions, all on one connection.

    Raises
    ------
    BanditError
        Saying which step failed and what to do.
    """
    options = settings.kafka_options()
    del options["bootstrap_servers"]
    where = f"broker {host}:{port}"
    try:
        # The time-out inside covers each request; this one covers name, connection, TLS and all of them
        # together.
        async with asyncio.timeout(timeout_ms / 1000):
            connection = await create_conn(host, port, request_timeout_ms=timeout_ms, **options)
    except (OSError, EOFError, kafka_errors.KafkaError) as error:
        explained = explain(error, where=where, protocol=settings.security.protocol)
        raise explained or BrokerUnavailable(str(error), where=where, action=_DOCTOR) from error
    try:
        return Offer(host, port, dict(connection._versions))  # aiokafka has no public way
    finally:
        connection.close()


def explain(error: BaseException, *, where: str = "", protocol: str = "") -> BanditError | None:
    """Say what an error of the network, TLS or Kafka means; ``None`` for an error of another kind.

    Parameters
    ----------
    error
        What was raised.
    where
        The address, if it is known.
    protocol
        The security protocol in use, if it is known.
    """
    if isinstance(error, BanditError):
        return error
    if isinstance(error, ssl.SSLError):
        return _explain_tls(error, where)
    if isinstance(error, kafka_errors.KafkaError):
        return _explain_kafka(error, where, protocol)
    if isinstance(error, socket.gaierror):
        return BrokerUnavailable(
            f"the host name does not resolve ({error.strerror})",
            where=where,
            action="correct the host name in bootstrap_servers, or the name service of this machine",
        )
    if isinstance(error, ConnectionRefusedError):
        return BrokerUnavailable(
            "nothing listens on that port", where=where, action="start the broker, or correct the port"
        )
    if isinstance(error, TimeoutError):
        return BrokerUnavailable(
            "no answer in time",
            where=where,
            action="check routes and firewalls between here and the broker, and security.protocol: a TLS"
            " listener that is addressed without TLS is silent, too",
        )
    if isinstance(error, ConnectionError | EOFError):
        return _closed(where, protocol)
    return None


def _closed(where: str, protocol: str) -> BanditError:
    now = f" (now {protocol})" if protocol else ""
    certificate = (
        " if the broker wants client certificates, set security.certfile and security.keyfile;"
        if protocol.endswith("SSL")
        else ""
    )
    return BrokerUnavailable(
        "the broker closed the connection",
        where=where,
        action=f"check that security.protocol{now} is that of the listener on this port;{certificate}"
        " the broker's log names the cause",
    )


def _explain_tls(error: ssl.SSLError, where: str) -> BanditError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigError(
            f"the broker's certificate is not accepted: {error.verify_message}",
            where=where,
            action="set security.cafile to the authority that signed it; if its name is another, use one"
            " that the certificate has, in bootstrap_servers and in the broker's advertised.listeners",
        )
    reason = getattr(error, "reason", None)  # an error made by hand has none
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"):
        return ConfigError(
            "the port does not speak TLS",
            where=where,
            action="set security.protocol to PLAINTEXT or SASL_PLAINTEXT, or use the TLS listener's port",
        )
    return ConfigError(
        f"TLS failed: {reason or error}",
        where=where,
        action="if the broker wants client certificates, set security.certfile and security.keyfile",
    )


def _explain_kafka(error: kafka_errors.KafkaError, where: str, protocol: str) -> BanditError:
    text = str(error)
    if isinstance(error, kafka_errors.SaslAuthenticationFailed | kafka_errors.AuthenticationFailedError):
        return ConfigError(
            f"the broker refused user or password ({text})",
            where=where,
            action="check security.sasl_username, sasl_password and sasl_mechanism with the broker's users",
        )
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError | kafka_errors.IllegalSaslStateError):
        return ConfigError(
            f"the broker does not take this SASL mechanism ({text})",
            where=where,
            action="set security.sasl_mechanism to one that the listener has enabled, or another protocol",
        )
    if isinstance(
        error,
        kafka_errors.TopicAuthorizationFailedError
        | kafka_errors.GroupAuthorizationFailedError
        | kafka_errors.ClusterAuthorizationFailedError,
    ):
        return ConfigError(
            f"the broker's access rules forbid it ({text})",
            where=where,
            action="give the user the rights listed in docs/operators.md",
        )
    if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
        return ConfigError(
            f"a topic or partition is missing ({text})",
            where=where,
            action="run `bandit-streams topics create`",
        )
    if isinstance(error, kafka_errors.KafkaConnectionError):
        return BrokerUnavailable(text, where=where, action=_DOCTOR) if not where else _closed(where, protocol)
    if getattr(error, "retriable", False) or isinstance(error, kafka_errors.KafkaTimeoutError):
        return BrokerUnavailable(
            text, where=where, action="wait and try again; see the broker's log if it stays"
        )
    return Stop(f"Kafka refused: {text}", where=where, action="see the broker's log for the cause")
