"""Topics of a test's own, definitions in them, records into them, and what the worker made of it."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer

from streams.config import Settings
from streams.experiments.definition import ExperimentRecord, encode_record
from streams.partitioning import partition_of
from streams.topics import create_topics
from tests.harness.traffic import Sent


def quick_settings(bootstrap: str, prefix: str, folder: Path, **changes: object) -> Settings:
    """Settings fit for tests: few partitions, quick flushes, short session time-out."""
    values: dict[str, object] = {
        "bootstrap_servers": bootstrap,
        "topic_prefix": prefix,
        "group": f"{prefix}workers",
        "partitions": 4,
        "counts_partitions": 2,
        "replication_factor": 1,
        "min_insync_replicas": 1,
        "data_dir": folder / "data",
        "counts_flush_ms": 100,
        "idle_after_ms": 0,
        "session_timeout_ms": 6000,
        "clock": "stream",
        "grace_ms": 6 * 3_600_000,
    }
    return Settings.model_validate(values | changes)


class Installation:
    """Topics and a producer; an async context manager.

    Parameters
    ----------
    settings
        From :func:`quick_settings`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.produced = 0
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        await create_topics(self.settings)
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self.settings.bootstrap_servers,
            enable_idempotence=True,
            linger_ms=5,
            max_batch_size=1 << 17,
        )
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._producer is not None:
            await self._producer.stop()

    @property
    def producer(self) -> AIOKafkaProducer:
        """The producer of all traffic."""
        assert self._producer is not None
        return self._producer

    async def define(self, records: Iterable[ExperimentRecord]) -> None:
        """Write definitions as they are."""
        from streams.topics import topic_specs

        (count,) = (spec.partitions for spec in topic_specs(self.settings) if spec.role == "experiments")
        for record in records:
            key = record.experiment_id.encode()
            await self.producer.send_and_wait(
                self.settings.topic("experiments"),
                encode_record(record),
                key,
                partition=partition_of(key, count),
            )

    async def produce(self, records: Iterable[Sent], *, per_second: float | None = None) -> int:
        """Produce records, at most so many a second; the number, all acknowledged."""
        began_s, sent = time.monotonic(), []
        for n, record in enumerate(records):
            topic = self.settings.topic("exposures" if record.topic == "exposures" else "conversions")
            sent.append(await self.producer.send(topic, record.value, record.key, partition=record.partition))
            if per_second is not None and n % 100 == 99:
                await asyncio.sleep(max(0.0, began_s + n / per_second - time.monotonic()))
        await asyncio.gather(*sent)
        self.produced += len(sent)
        return len(sent)

    async def mark(self, watermark: str, topics: Sequence[str] = ("exposures", "conversions")) -> None:
        """Write a watermark marker into every partition of the source topics (``end`` or epoch ms)."""
        header = [("bandit-watermark", watermark.encode())]
        for topic in topics:
            name = self.settings.topic("exposures" if topic == "exposures" else "conversions")
            for partition in range(self.settings.partitions):
                await self.producer.send_and_wait(name, b"", None, partition=partition, headers=header)
                self.produced += 1
