"""Checks of the way to the cluster: addresses, TLS and passwords, what the brokers can do, the topics."""

import asyncio
from collections.abc import Sequence

from streams.config import Settings
from streams.connection import Offer, bootstrap_addresses, probe
from streams.doctor.findings import Context, Finding, Level, ok
from streams.errors import BanditError
from streams.topics import admin_client, check_topics

__all__ = ["check_address", "check_brokers", "check_topic_settings"]

_NEEDED_APIS = {
    0: ("Produce", 3),  # record headers
    1: ("Fetch", 4),
    11: ("JoinGroup", 2),
    19: ("CreateTopics", 1),
    21: ("DeleteRecords", 0),  # the journal is trimmed with it
    22: ("InitProducerId", 0),  # idempotent producers
    32: ("DescribeConfigs", 0),
}


async def check_address(settings: Settings) -> Sequence[Finding]:
    """Reach every bootstrap address; one that answers is enough to go on."""
    try:
        addresses = bootstrap_addresses(settings.bootstrap_servers)
    except BanditError as error:
        return [Finding(Level.FAIL, "address", error.what, error.where, error.action)]
    answers = await asyncio.gather(
        *(probe(settings, host, port) for host, port in addresses), return_exceptions=True
    )
    any_answer = any(isinstance(answer, Offer) for answer in answers)
    findings = []
    for (host, port), answer in zip(addresses, answers, strict=True):
        if isinstance(answer, Offer):
            findings.append(ok("address", f"answers, {settings.security.protocol}", f"broker {host}:{port}"))
        elif isinstance(answer, BanditError):
            level = Level.WARN if any_answer else Level.FAIL
            findings.append(Finding(level, "address", answer.what, answer.where, answer.action))
        else:
            raise answer
    return findings


async def check_brokers(context: Context) -> Sequence[Finding]:
    """Reach every broker under the address it tells clients, and see that it can what is needed."""
    settings = context.settings
    async with admin_client(settings) as admin:
        cluster = await admin.describe_cluster()
    brokers = cluster["brokers"]
    answers = await asyncio.gather(
        *(probe(settings, broker["host"], broker["port"]) for broker in brokers), return_exceptions=True
    )
    findings = []
    for broker, answer in zip(brokers, answers, strict=True):
        where = f"broker {broker['node_id']} at {broker['host']}:{broker['port']}"
        if isinstance(answer, Offer):
            findings += _missing_apis(answer, where)
        elif isinstance(answer, BanditError):
            findings.append(
                Finding(
                    Level.FAIL,
                    "brokers",
                    f"the address it tells clients cannot be used from here: {answer.what}",
                    where,
                    "set the broker's advertised.listeners to a name that clients can reach",
                )
            )
        else:
            raise answer
    if findings:
        return findings
    return [
        ok(
            "brokers",
            f"{len(brokers)} reachable, with all that is needed",
            f"cluster {cluster['cluster_id']}",
        )
    ]


def _missing_apis(offer: Offer, where: str) -> list[Finding]:
    missing = [
        name for key, (name, version) in _NEEDED_APIS.items() if offer.apis.get(key, (0, -1))[1] < version
    ]
    if not missing:
        return []
    return [
        Finding(
            Level.FAIL,
            "brokers",
            f"does not offer {', '.join(missing)} in the version needed",
            where,
            "use Apache Kafka 2.1 or newer, or a broker that implements these requests",
        )
    ]


async def check_topic_settings(context: Context) -> Sequence[Finding]:
    """Compare the topics with what the settings say."""
    levels = {"error": Level.FAIL, "warning": Level.WARN}
    findings = [
        Finding(levels[found.severity], "topics", found.problem, found.topic, found.action)
        for found in await check_topics(context.settings)
    ]
    return findings or [ok("topics", "all eight are there, as the settings say")]
