"""Throughput of the batch step alone: no broker, no RocksDB, state in dictionaries.

The workload is the join's usual one: exposures of about 130 bytes over a number of units, ten experiments of
four arms, one in ten converting within its window, in order of time. The reference, in the same run, is bare
msgspec decoding of the same records. Prints events/s of both and their ratio; ``--profile`` prints where the
time goes.

Run: ``python bench/join_step.py [--exposures N] [--units N] [--experiments N] [--batch N] [--profile]``
"""

import argparse
import cProfile
import gc
import json
import pstats
import random
import time
from collections.abc import Mapping, Sequence

import msgspec

from streams.events import Conversion, Exposure, encode_event, event_key
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward
from streams.join.definitions import Definitions
from streams.join.step import Batch, Limits, SourceRecord, run_step

HOUR_MS = 3_600_000
START_MS = 480_000 * HOUR_MS
LIMITS = Limits(n_partitions=1, grace_ms=24 * HOUR_MS, max_ahead_ms=300_000, unit_max_events=10_000)
N_ARMS = 4


def definitions(n_experiments: int) -> Definitions:
    """Experiments with the default windows."""
    arms = tuple(Arm(arm_id=f"arm-{i}") for i in range(N_ARMS))
    counting = Counting(version=1, effective_from_ms=0, reward=Reward(metric="purchase"))
    return Definitions(
        ExperimentRecord(
            experiment_id=f"exp-{i}",
            revision=1,
            status="live",
            arms=arms,
            control="arm-0",
            versions=(counting,),
        )
        for i in range(n_experiments)
    )


def workload(
    n_exposures: int, n_units: int, n_experiments: int, span_ms: int, seed: int
) -> dict[str, list[SourceRecord]]:
    """Make records of both topics, sorted by time."""
    rng = random.Random(seed)
    events: list[tuple[int, Exposure | Conversion]] = []
    for i in range(n_exposures):
        ms = START_MS + span_ms * i // n_exposures
        unit = f"user-{rng.randrange(n_units):07}"
        experiment = f"exp-{rng.randrange(n_experiments)}"
        events.append(
            (
                ms,
                Exposure(
                    exposure_id=f"x{i:09}",
                    experiment_id=experiment,
                    unit_id=unit,
                    timestamp=ms,
                    arm_id=f"arm-{rng.randrange(N_ARMS)}",
                ),
            )
        )
        if rng.random() < 0.1:
            at = ms + rng.randrange(6 * HOUR_MS)
            done = Conversion(conversion_id=f"c{i:09}", unit_id=unit, metric="purchase", timestamp=at)
            events.append((at, done))
    events.sort(key=lambda pair: pair[0])
    records: dict[str, list[SourceRecord]] = {"exposures": [], "conversions": []}
    for ms, event in events:
        own = records["conversions" if isinstance(event, Conversion) else "exposures"]
        own.append(SourceRecord(len(own), event_key(event), encode_event(event), ms))
    return records


class Store:
    """State of one partition in dictionaries."""

    def __init__(self) -> None:
        self.units: dict[bytes, bytes] = {}
        self.cells: dict[bytes, bytes] = {}
        self.maxima: Mapping[str, int] = {}
        self.totals: Mapping[str, int] = {}
        self.pending = 0

    def load_units(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return list(map(self.units.get, keys))

    def load_cells(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return list(map(self.cells.get, keys))


def batches(records: Mapping[str, Sequence[SourceRecord]], size: int) -> list[Batch]:
    """Batches of both topics, interleaved as their shares of the records are."""
    found: list[tuple[int, Batch]] = []
    for topic, own in records.items():
        share = max(1, size * len(own) // max(len(r) for r in records.values()))
        for start in range(0, len(own), share):
            chunk = own[start : start + share]
            batch = Batch(topic=topic, partition=0, start=start, next=start + len(chunk), records=chunk)
            found.append((chunk[0].timestamp_ms, batch))
    found.sort(key=lambda pair: pair[0])
    return [batch for _, batch in found]


def join(work: Sequence[Batch], store: Store, plans: Definitions) -> float:
    """CPU seconds that the steps of all batches take, the dictionaries' updates included."""
    began = time.process_time()
    for batch in work:
        result = run_step(batch, store, plans, LIMITS, store.load_units, store.load_cells)
        for key, state in result.units.items():
            if state is None:
                del store.units[key]
            else:
                store.units[key] = state
        store.cells.update(result.cells)
        store.maxima, store.totals, store.pending = result.maxima, result.totals, result.pending
    return time.process_time() - began


def decode(work: Sequence[Batch]) -> float:
    """CPU seconds that bare decoding of all records takes."""
    decoders = {
        "exposures": msgspec.json.Decoder(Exposure),
        "conversions": msgspec.json.Decoder(Conversion),
    }
    began = time.process_time()
    for batch in work:
        one = decoders[batch.topic].decode
        for record in batch.records:
            one(record.value or b"")
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exposures", type=int, default=200_000)
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--experiments", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4_000, help="records of the larger topic a batch")
    parser.add_argument("--span-hours", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    span_ms = options.span_hours * HOUR_MS
    records = workload(options.exposures, options.units, options.experiments, span_ms, options.seed)
    work = batches(records, options.batch)
    n_events = sum(map(len, records.values()))
    plans = definitions(options.experiments)
    gc.collect()
    gc.freeze()  # the workload itself is no garbage to look through
    if options.profile:
        with cProfile.Profile(time.process_time) as profile:
            join(work, Store(), plans)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    store = Store()
    decoding = min(decode(work) for _ in range(3))
    joining = join(work, store, plans)
    figures = {
        "events": n_events,
        "join_events_per_s": round(n_events / joining),
        "join_us_per_event": round(1e6 * joining / n_events, 2),
        "decode_events_per_s": round(n_events / decoding),
        "ratio_to_decoding": round(decoding / joining, 3),
        "state_bytes_per_unit": round(sum(map(len, store.units.values())) / len(store.units)),
        "cells": len(store.cells),
        "attributed": store.totals.get("conversions/attributed", 0),
    }
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value:>14,}")


if __name__ == "__main__":
    main()
