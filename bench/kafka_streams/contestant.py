"""Contestants ``kafka-streams-…``: the same join by the Processor API, where Java 17 and Maven are there."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

from bench.contestant import Arena, Run, Unavailable, disk_bytes, run_script, topic_disk_bytes

PROJECT = Path(__file__).parent
TARGET = PROJECT.parents[1] / "build" / "bench-kafka-streams"


class KafkaStreams:
    """Processor API, unit and count stores in RocksDB with changelogs, one thread.

    Parameters
    ----------
    guarantee
        ``at_least_once`` or ``exactly_once_v2``.
    """

    def __init__(self, guarantee: str) -> None:
        self.name = f"kafka-streams-{guarantee.replace('_', '-')}"
        self.settings = (
            f"Kafka Streams 3.9.1, {guarantee}, defaults otherwise (one thread, record cache 10 MB, RocksDB "
            "and changelog), Java 17 with a heap of 1 GiB; time includes the JVM's warming up"
        )
        self._guarantee = guarantee

    async def run(self, arena: Arena, number: int) -> Run:
        """Count everything once."""
        await asyncio.to_thread(_build)
        folder = arena.folder / f"{self.name}-{number}"
        group = f"{arena.prefix}{self.name}-{number}"
        command = [
            "java",
            "-Xmx1g",
            "-cp",
            f"{TARGET / 'classes'}:{TARGET / 'lib'}/*",
            "bench.Join",
            arena.bootstrap,
            arena.topics["exposures"],
            arena.topics["conversions"],
            group,
            str(folder),
            self._guarantee,
            str(arena.work.window_ms),
            str(arena.n_events),
        ]
        run = await run_script(command, arena, log=arena.folder / f"{self.name}-{number}.log")
        return run._replace(
            state_bytes=disk_bytes(folder), journal_disk_bytes=topic_disk_bytes(arena, f"{group}-*-changelog")
        )


def _build() -> None:
    for tool in ("java", "javac", "mvn"):
        if shutil.which(tool) is None:
            raise Unavailable(f"there is no {tool} on PATH")
    command = ["mvn", "-q", "-B", "-f", str(PROJECT / "pom.xml"), "dependency:copy-dependencies"]
    sources = [str(path) for path in PROJECT.glob("src/main/java/bench/*.java")]
    try:
        for each in (
            [*command, f"-DoutputDirectory={TARGET / 'lib'}"],
            ["javac", "-d", str(TARGET / "classes"), "-cp", f"{TARGET / 'lib'}/*", *sources],
        ):
            subprocess.run(each, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{each[0]} failed: {json.dumps((error.stdout + error.stderr)[-500:])}") from error
