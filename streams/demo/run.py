"""The demo from beginning to end: a broker, the parts asked for, the last line.

Cost: a few minutes on two cores, of which the first run of all spends some seconds on fetching Kafka.
"""

import asyncio
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Final, Literal

from msgspec import Struct

from streams.config import Settings
from streams.demo.installation import Installation, demo_settings
from streams.demo.living_shop import run_shop
from streams.demo.openbandit import LoggedEvents, load_logged_events
from streams.demo.part import PartSummary
from streams.demo.progress import Narrator
from streams.demo.replay import run_replay
from streams.demo.report import summary_line
from streams.embedded import Broker, kafka
from streams.errors import ConfigError

__all__ = ["DemoOptions", "PartName", "run_demo"]

PartName = Literal["replay", "shop"]

_EXTRA_PACKAGES: Final = ("duckdb", "matplotlib")


class DemoOptions(Struct, frozen=True, kw_only=True):
    """What to run.

    Parameters
    ----------
    parts
        In this order.
    input_file
        CSV of impressions for the replay.
    bootstrap
        A running Kafka; by default one is found or started.
    days
        Simulated days of the shop, at least 1.
    seed
        Of everything random.
    out_dir
        Where the picture and the workers' logs go; made if it is not there.
    config
        Settings file that the worker is to read, too.
    algorithms
        Policies that the log is replayed with.
    """

    parts: tuple[PartName, ...]
    input_file: Path
    bootstrap: str | None
    days: int
    seed: int
    out_dir: Path
    config: Path | None = None
    algorithms: tuple[str, ...] = ("thompson",)


def run_demo(settings: Settings, options: DemoOptions, narrator: Narrator) -> bool:
    """Run the demo.

    Returns
    -------
    bool
        Whether all counts equal the oracle's.

    Raises
    ------
    ConfigError
        A package of the extra ``demo`` is missing.
    InputUnreadable, BrokerUnavailable, WorkerFailed, DeadlineExceeded
        The input, the broker or the worker is not as it must be.
    """
    started = time.monotonic()
    _require_packages()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    summaries: dict[str, PartSummary] = {}
    logged = load_logged_events(options.input_file) if "replay" in options.parts else None
    with _terminable(), kafka(options.bootstrap, report=narrator.say) as broker:
        narrator.say(f"Kafka: {broker.bootstrap_servers} ({broker.kind})")
        for part in options.parts:
            summaries[part] = asyncio.run(_run_part(part, settings, options, broker, narrator, logged))
    total = _total(list(summaries.values()), time.monotonic() - started)
    narrator.say("")
    narrator.say(summary_line(total, summaries))
    return total.counts_equal_oracle


def _require_packages() -> None:
    """Say what is missing before minutes are spent, not after."""
    missing = [name for name in _EXTRA_PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the demo needs packages that are not installed: {' and '.join(missing)}",
            action="pip install 'bandit-streams[demo]'",
        )


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that worker and broker end with it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def _run_part(
    part: PartName,
    settings: Settings,
    options: DemoOptions,
    broker: Broker,
    narrator: Narrator,
    logged: LoggedEvents | None,
) -> PartSummary:
    data_dir = Path(tempfile.mkdtemp(prefix="bandit-demo-"))
    own = demo_settings(
        settings,
        bootstrap_servers=broker.bootstrap_servers,
        prefix=f"demo-{secrets.token_hex(3)}-{part}-",
        data_dir=data_dir,
    )
    make_installation = partial(
        Installation,
        own,
        log_file=options.out_dir / f"worker-{part}.log",
        config=options.config,
        remove_topics=broker.kind == "given",
    )
    if logged is not None and part == "replay":
        return await run_replay(
            make_installation, narrator, logged, seed=options.seed, algorithms=options.algorithms
        )
    return await run_shop(
        make_installation,
        narrator,
        days=options.days,
        seed=options.seed,
        picture=options.out_dir / "shop.png",
    )


def _total(parts: list[PartSummary], seconds: float) -> PartSummary:
    return PartSummary(
        events=sum(part.events for part in parts),
        exposures=sum(part.exposures for part in parts),
        conversions=sum(part.conversions for part in parts),
        trials=sum(part.trials for part in parts),
        successes=sum(part.successes for part in parts),
        duplicates=sum(part.duplicates for part in parts),
        dead_letters=sum(part.dead_letters for part in parts),
        allocations=sum(part.allocations for part in parts),
        counts_equal_oracle=all(part.counts_equal_oracle for part in parts),
        seconds=round(seconds, 1),
    )
