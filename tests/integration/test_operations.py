"""Dead letters, replay, doctor and the health pages, against a real worker on a real Kafka."""

import asyncio
import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from streams import cli
from streams.config import Settings
from streams.deadletters import Filter, StoredLetter, read_letters
from streams.demo.verification import add_cells, read_counts
from streams.embedded import Broker
from streams.errors import RecordError
from streams.experiments.definition import ExperimentRecord
from streams.log_reader import LogReader
from streams.oracle import compute_cells
from tests.harness.check import (
    JournalWatch,
    account,
    differences,
    limits_of,
    read_sources,
    verify,
    wait_drained,
)
from tests.harness.installation import Installation, quick_settings
from tests.harness.traffic import HOUR_MS, Traffic, experiments
from tests.harness.workers import WorkerHandle, environment, until

pytestmark = pytest.mark.integration


async def letters(settings: Settings) -> list[StoredLetter]:
    problems: list[RecordError] = []
    async with LogReader(settings) as reader:
        found = [s async for s in read_letters(reader, settings.topic("dead-letters"), Filter(), problems)]
    assert not problems
    return found


async def wait_for_letters(settings: Settings, watch: JournalWatch) -> list[StoredLetter]:
    """Wait until every verdict has its dead letter."""

    async def all_there() -> list[StoredLetter] | None:
        found = await letters(settings)
        return found if len(found) >= len(watch.verdicts) else None

    found: list[StoredLetter] = await until(
        all_there, deadline_s=30, what="a letter for every verdict", poll_s=0.3
    )
    return found


async def originals(settings: Settings) -> dict[tuple[str, int, int], tuple[bytes | None, bytes | None]]:
    found = {}
    async with LogReader(settings) as reader:
        for topic in (settings.topic("exposures"), settings.topic("conversions")):
            async for record in reader.read(topic):
                found[topic, record.partition, record.offset] = (record.key, record.value)
    return found


async def counts_equal_oracle(
    settings: Settings, watch: JournalWatch, records: list[ExperimentRecord]
) -> Counter[str]:
    """Require that all is counted as the oracle counts, and every record has one outcome; the totals.

    Verdicts are taken as they stand: those from before a definition came would not be given now.
    """
    await wait_drained(settings, watch, 60)
    sources = await read_sources(settings)
    expected = add_cells(
        [
            compute_cells(
                sources.rows["exposures"],
                sources.rows["conversions"],
                records,
                watch.verdicts.keys(),
                limits_of(settings),
            )
        ]
    )

    async def equal() -> bool:
        async with LogReader(settings) as reader:
            return not differences((await read_counts(settings, reader)).cells, expected)

    await until(equal, deadline_s=20, what="counts equal the oracle", poll_s=0.5)
    assert not account(watch, sources)
    return watch.totals()


async def command(*args: str) -> int:
    return await asyncio.to_thread(cli.main, list(args))


def sample(text: str, name: str, **labels: str) -> float:
    """Sum of the samples of a metric that have these labels."""
    total = 0.0
    for series, value in re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE):
        have = dict(re.findall(r'(\w+)="([^"]*)"', series))
        if labels.items() <= have.items():
            total += float(value)
    return total


async def test_rejected_events_are_kept_replayed_after_a_fix_and_never_counted_twice(
    broker: Broker,
    topic_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = quick_settings(broker.bootstrap_servers, topic_prefix, tmp_path)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    start_ms = (time.time_ns() // 1_000_000 // HOUR_MS - 24) * HOUR_MS
    records = experiments(start_ms)
    missing = next(record for record in records if record.experiment_id == "display")
    async with Installation(settings) as installation, JournalWatch(settings) as watch:
        await installation.define(record for record in records if record is not missing)
        traffic = Traffic(seed=5, start_ms=start_ms, n_partitions=settings.partitions)
        await installation.produce(traffic.records(4_000, hours=4))
        worker = WorkerHandle(settings, "w1", tmp_path)
        worker.start()
        try:
            await worker.wait_ready()
            before = await verify(settings, watch, [r for r in records if r is not missing])
            found = await wait_for_letters(settings, watch)

            # Every verdict has its letter, and every letter the bytes that stand in the source topic.
            sources = await originals(settings)
            assert {stored.letter.identity: stored.letter.reason for stored in found} == {
                (settings.topic("exposures" if t == "exposures" else "conversions"), p, o): verdict.reason
                for (t, p, o), verdict in watch.verdicts.items()
            }
            for stored in found:
                assert (stored.letter.key, stored.letter.value) == sources[stored.letter.identity]
                assert stored.letter.message
            unknown = [s for s in found if s.letter.reason == "unknown_experiment"]
            fixable = [s for s in unknown if b'"display"' in (s.letter.value or b"")]
            assert len(fixable) > 300
            assert len(unknown) > len(fixable)

            # The fix, and the replay: what was rejected for want of a definition counts now.
            await installation.define([missing])
            assert await command("dead-letters", "replay", "--reason", "unknown_experiment", "--yes") == 0
            assert f"replayed {len(unknown)} events" in capsys.readouterr().out
            after = await counts_equal_oracle(settings, watch, records)
            gained = after["exposures/accepted"] - before["exposures/accepted"]
            assert 0.9 * len(fixable) < gained <= len(fixable)  # the traffic has a few duplicates
            assert after["exposures/dead_letter/unknown_experiment"] == 2 * len(unknown) - len(fixable)

            # The same once more: remembered, so nothing is sent; and by force: sent, and nothing is counted.
            assert await command("dead-letters", "replay", "--reason", "unknown_experiment", "--yes") == 0
            assert f"replayed before: {len(unknown)}" in capsys.readouterr().out
            await wait_for_letters(settings, watch)
            args = ["--reason", "unknown_experiment", "--again", "--yes"]
            assert await command("dead-letters", "replay", *args) == 0
            again = await counts_equal_oracle(settings, watch, records)
            assert again["exposures/accepted"] == after["exposures/accepted"]
            assert again["exposures/duplicate"] > after["exposures/duplicate"] + 0.9 * len(fixable)
        finally:
            worker.kill()


def metrics_agree(text: str, totals: Counter[str], n_partitions: int) -> bool:
    """Whether /metrics says what the journal says."""
    outcomes: Counter[tuple[str, str]] = Counter()
    for name, n in totals.items():
        topic, outcome = name.split("/")[:2]
        if outcome not in ("attributed", "expired"):
            outcomes[topic, outcome] += n
    rejected = sum(n for name, n in totals.items() if "/dead_letter/" in name)
    return (
        all(
            sample(text, "bandit_events_total", topic=topic, outcome=outcome) == n
            for (topic, outcome), n in outcomes.items()
        )
        and sample(text, "bandit_dead_letters_total") == rejected
        and sample(text, "bandit_partition_state", state="active") == n_partitions
        and sample(text, "bandit_lag_records") == 0
        and sample(text, "bandit_conversions_attributed_total") == totals["conversions/attributed"]
    )


async def findings_of_doctor(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, dict[str, str]]:
    """Run the command; the last finding of each check, worst level first."""
    capsys.readouterr()
    await command("doctor", "--json", *args)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {finding["check"]: finding for finding in sorted(found, key=lambda f: f["level"] == "fail")}


async def test_doctor_and_the_pages_of_a_worker_at_work(
    broker: Broker,
    topic_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = quick_settings(broker.bootstrap_servers, topic_prefix, tmp_path)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    start_ms = (time.time_ns() // 1_000_000 // HOUR_MS - 24) * HOUR_MS
    records = experiments(start_ms)
    async with Installation(settings) as installation, JournalWatch(settings) as watch:
        await installation.define(records)
        traffic = Traffic(seed=6, start_ms=start_ms, n_partitions=settings.partitions)
        await installation.produce(traffic.records(3_000, hours=3))
        worker = WorkerHandle(settings, "w1", tmp_path)
        worker.start()
        try:
            await worker.wait_ready()
            totals = await verify(settings, watch, records)
            await wait_for_letters(settings, watch)
            await check_pages(worker, totals)
            await check_doctor(settings, capsys)
            worker.kill()
            await installation.produce(traffic.records(100, hours=0.1))
            monkeypatch.setenv("BANDIT_STALL_DEADLINE_MS", "1000")
            await check_doctor_misses_the_worker(capsys)
        finally:
            worker.kill()


async def check_pages(worker: WorkerHandle, totals: Counter[str]) -> None:
    n_partitions = worker.settings.partitions
    status, body = await worker.get("livez")
    assert (status, json.loads(body)["live"]) == (200, True)
    checks = {check["name"] for check in json.loads((await worker.get("readyz"))[1])["checks"]}
    assert {"start", *(f"partition-{n}" for n in range(n_partitions))} <= checks

    async def agree() -> bool:
        return metrics_agree((await worker.get("metrics"))[1], totals, n_partitions)

    await until(agree, deadline_s=20, what="metrics equal the journal's totals", poll_s=0.3)


async def check_doctor(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Require that it comes to find nothing broken, and that it sees what is there."""
    seen: dict[str, dict[str, str]] = {}

    async def well() -> bool:
        seen.update(await findings_of_doctor(capsys))
        return not [finding for finding in seen.values() if finding["level"] == "fail"]

    try:
        await until(well, deadline_s=40, what="doctor finds nothing broken", poll_s=1)
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen}") from None
    assert seen["workers"]["what"] == "1 running"
    assert "0 records still to count" in seen["counting"]["what"]
    assert seen["counts"]["what"] == f"progress of {settings.partitions} partitions is published"
    assert seen["definitions"]["what"] == "4 live"
    assert "4 live experiments have a fresh allocation" in seen["allocations"]["what"]
    assert "in the last hour" in seen["dead-letters"]["what"]


async def check_doctor_misses_the_worker(capsys: pytest.CaptureFixture[str]) -> None:
    async def missed() -> bool:
        seen = await findings_of_doctor(capsys, "--check", "workers", "--check", "counting")
        return "no worker runs" in seen["workers"]["what"] and "records wait" in seen["counting"]["what"]

    await until(missed, deadline_s=40, what="doctor sees that no worker runs", poll_s=1)
