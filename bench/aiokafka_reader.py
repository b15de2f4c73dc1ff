"""Contestant ``aiokafka``: a bare consumer that decodes and forgets; what any Python worker starts from."""

import asyncio
import json
import sys
import time
from typing import Any

import msgspec
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from bench.contestant import Arena, Run, run_script, script


class _Exposure(msgspec.Struct):
    exposure_id: str
    experiment_id: str
    arm_id: str
    unit_id: str
    timestamp: int


class _Conversion(msgspec.Struct):
    conversion_id: str
    unit_id: str
    metric: str
    timestamp: int


class AiokafkaReader:
    """Reads and decodes everything; counts nothing."""

    name = "aiokafka"
    settings = "aiokafka's defaults, no group, uvloop, msgspec Structs of the needed fields"

    async def run(self, arena: Arena, number: int) -> Run:
        """Read all records once."""
        return await run_script(
            script("bench.aiokafka_reader", arena), arena, log=arena.folder / f"aiokafka-{number}.log"
        )


async def read(arguments: dict[str, Any]) -> None:
    """Read all records of both topics."""
    decoders = {
        arguments["topics"]["exposures"]: msgspec.json.Decoder(_Exposure).decode,
        arguments["topics"]["conversions"]: msgspec.json.Decoder(_Conversion).decode,
    }
    consumer = AIOKafkaConsumer(bootstrap_servers=arguments["bootstrap"], enable_auto_commit=False)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, p) for topic in decoders for p in range(arguments["partitions"])]
        print(json.dumps({"began": time.time()}), flush=True)
        began_s = time.perf_counter()
        consumer.assign(tps)
        await consumer.seek_to_beginning()
        left = arguments["n_events"]
        while left:
            for tp, records in (await consumer.getmany(timeout_ms=1000)).items():
                decode = decoders[tp.topic]
                for record in records:
                    decode(record.value)
                left -= len(records)
        print(json.dumps({"seconds": time.perf_counter() - began_s}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await consumer.stop()


if __name__ == "__main__":
    uvloop.run(read(json.loads(sys.argv[1])))
