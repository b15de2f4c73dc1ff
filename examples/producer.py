"""Exposures and conversions from a producer of your own, without the edge client.

Anything that can write JSON to Kafka can do this. Two things matter: the key is the unit's id, and the
partitioner is Java's (murmur2), so that all events of a unit meet in one partition. aiokafka has it by
default; librdkafka needs ``partitioner=murmur2_random``. docs/producers.md has every field.

    python examples/producer.py [NUMBER OF VISITORS]
"""

import asyncio
import json
import sys
import time
import uuid

import numpy as np
from aiokafka import AIOKafkaProducer

from streams.config import load_settings

RATES = {"grey": 0.04, "green": 0.05, "orange": 0.06}


async def produce(n_visitors: int) -> int:
    """Show every visitor a button, let some of them order; return the number of orders."""
    settings = load_settings()
    producer = AIOKafkaProducer(
        **settings.kafka_options(),
        enable_idempotence=True,
        key_serializer=str.encode,
        value_serializer=lambda event: json.dumps(event).encode(),
    )
    rng = np.random.default_rng()
    orders = 0
    async with producer:
        for i in range(n_visitors):
            visitor = f"visitor-{i}"
            arm = str(rng.choice(list(RATES)))
            now_ms = time.time_ns() // 1_000_000
            exposure = {
                "exposure_id": str(uuid.uuid4()),
                "experiment_id": "checkout-button",
                "unit_id": visitor,
                "timestamp": now_ms,
                "arm_id": arm,
                "propensity": 1 / len(RATES),
                "context": {"country": "ch"},
            }
            await producer.send(settings.topic("exposures"), exposure, key=visitor)
            if rng.random() < RATES[arm]:
                orders += 1
                order = {
                    "conversion_id": str(uuid.uuid4()),
                    "unit_id": visitor,
                    "metric": "order",
                    "timestamp": now_ms + 1000,
                }
                await producer.send(settings.topic("conversions"), order, key=visitor)
        await producer.flush()
    return orders


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print(f"{count} visitors, {asyncio.run(produce(count))} orders")
