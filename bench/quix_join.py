"""Contestant ``quixstreams``: a stateful Quix Streams application, in a virtual environment of its own.

It is no dependency of this product: the bench installs it beside, and leaves it out where it cannot.
"""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.contestant import Arena, Run, Unavailable, disk_bytes, run_script, script
from bench.unit_counts import apply, empty

REQUIREMENT = "quixstreams==3.28.1"
VENV = Path(__file__).parents[1] / "build" / "bench-quix"


class QuixJoin:
    """Both topics through a stateful map; the units' state in RocksDB with a changelog."""

    name = "quixstreams"
    settings = "Quix Streams' defaults (at least once, commit every 5 s), its RocksDB state with a changelog"

    async def run(self, arena: Arena, number: int) -> Run:
        """Count everything once."""
        python = await asyncio.to_thread(_install)
        folder = arena.folder / f"quix-{number}"
        command = script("bench.quix_join", arena, group=f"{arena.prefix}quix-{number}", folder=str(folder))
        run = await run_script([str(python), *command[1:]], arena, log=arena.folder / f"quix-{number}.log")
        return run._replace(state_bytes=disk_bytes(folder))


def _install() -> Path:
    python = VENV / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, capture_output=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", REQUIREMENT, "aiokafka", "numpy"],
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{REQUIREMENT} cannot be installed: {str(error.stderr)[-300:]}") from error
    return python


def work(arguments: dict[str, Any]) -> None:
    """Run the application until all events were counted."""
    from quixstreams import Application  # noqa: PLC0415 - only in the environment of its own

    app = Application(
        broker_address=arguments["bootstrap"],
        consumer_group=arguments["group"],
        auto_offset_reset="earliest",
        state_dir=arguments["folder"],
        loglevel="ERROR",
    )
    window_ms = arguments["window_ms"]
    seen = {"n": 0, "began_s": 0.0}
    totals: dict[tuple[str, str, int], list[int]] = {}

    def count(fields: dict[str, Any], state: Any) -> None:
        if not seen["n"]:
            seen["began_s"] = time.perf_counter()
            print(json.dumps({"began": time.time()}), flush=True)
        unit = state.get("unit") or empty()
        for key, (trials, successes) in apply(unit, fields, window_ms).items():
            known = totals.setdefault(key, [0, 0])
            known[0] += trials
            known[1] += successes
        state.set("unit", unit)
        seen["n"] += 1
        if seen["n"] == arguments["n_events"]:
            seconds = time.perf_counter() - seen["began_s"]
            rows = [[*key, *value] for key, value in totals.items()]
            print(json.dumps({"seconds": seconds, "counts": rows}), flush=True)
            app.stop()

    frames = [
        app.dataframe(app.topic(arguments["topics"][topic], value_deserializer="json"))
        for topic in ("exposures", "conversions")
    ]
    frames[0].concat(frames[1]).update(count, stateful=True)
    app.run()
    sys.stdin.read()


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
