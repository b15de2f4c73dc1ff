"""Contestant ``faust``: a plain Faust agent with tables, as its documentation shows them."""

import asyncio
import json
import sys
import threading
import time
from typing import Any

import faust
import msgspec
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bench.contestant import Arena, Run, disk_bytes, run_script, script
from bench.unit_counts import apply, empty


class FaustJoin:
    """An agent on both topics, a table of units, a table of counts, both in RocksDB with a changelog."""

    name = "faust"
    settings = "Faust's defaults (at least once), tables in RocksDB by rocksdict, msgspec decoding"

    async def run(self, arena: Arena, number: int) -> Run:
        """Count everything once."""
        folder = arena.folder / f"faust-{number}"
        folder.mkdir()
        group = f"{arena.prefix}faust-{number}"
        admin = AIOKafkaAdminClient(bootstrap_servers=arena.bootstrap)
        await admin.start()
        try:
            names = [f"{group}-{table}-changelog" for table in ("units", "counts")]
            await admin.create_topics(
                [
                    NewTopic(name, arena.work.partitions, 1, topic_configs={"cleanup.policy": "compact"})
                    for name in names
                ]
            )
        finally:
            await admin.close()
        run = await run_script(
            script("bench.faust_join", arena, group=group, folder=str(folder)),
            arena,
            log=arena.folder / f"faust-{number}.log",
        )
        return run._replace(state_bytes=disk_bytes(folder))


def work(arguments: dict[str, Any]) -> None:
    """Run a worker until all events were counted."""
    app = faust.App(
        arguments["group"],
        broker=f"kafka://{arguments['bootstrap']}",
        store="rocksdb://",
        datadir=arguments["folder"],
        topic_partitions=arguments["partitions"],
        web_enabled=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
    )
    names = arguments["topics"]
    sources = app.topic(names["exposures"], names["conversions"], value_type=bytes, value_serializer="raw")
    units = app.Table("units", partitions=arguments["partitions"])
    counts = app.Table("counts", partitions=arguments["partitions"])
    window_ms = arguments["window_ms"]
    seen = {"n": 0, "began_s": 0.0}
    decode = msgspec.json.Decoder().decode

    @app.agent(sources)
    async def join(stream: Any) -> None:
        async for event in stream.events():
            if not seen["n"]:
                seen["began_s"] = time.perf_counter()
                print(json.dumps({"began": time.time()}), flush=True)
            fields = decode(event.value)
            unit = fields["unit_id"]
            state = units.get(unit) or empty()
            changes = apply(state, fields, window_ms)
            if changes:
                for key, (trials, successes) in changes.items():
                    # By partition: a table is written from one partition at a time.
                    name = "|".join((*map(str, key), str(event.message.partition)))
                    known = counts.get(name) or [0, 0]
                    counts[name] = [known[0] + trials, known[1] + successes]
            units[unit] = state
            seen["n"] += 1
            if seen["n"] == arguments["n_events"]:
                end()

    def end() -> None:
        seconds = time.perf_counter() - seen["began_s"]
        found: dict[tuple[str, str, int], list[int]] = {}
        for name, (trials, successes) in counts.items():
            experiment, arm, hour, _ = name.split("|")
            own = found.setdefault((experiment, arm, int(hour)), [0, 0])
            own[0] += trials
            own[1] += successes
        rows = [[*key, *value] for key, value in found.items()]
        print(json.dumps({"seconds": seconds, "counts": rows}), flush=True)

    threading.Thread(target=sys.stdin.read, daemon=True).start()
    worker = faust.Worker(app, loglevel="WARNING", redirect_stdouts=False)
    asyncio.set_event_loop(worker.loop)
    worker.execute_from_commandline()


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
