"""Everything a fault may touch, in one place."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from streams.config import Settings
from streams.experiments.definition import ExperimentRecord
from tests.chaos.crew import Crew
from tests.chaos.network import Broker, Network
from tests.chaos.shop import Shop
from tests.chaos.watch import JournalWatch, SourceWatch
from tests.harness.installation import Installation


@dataclass
class World:
    """A run in progress."""

    folder: Path
    settings: Settings
    network: Network
    crew: Crew
    shop: Shop
    installation: Installation
    sources: SourceWatch
    journal: JournalWatch
    definitions: dict[str, ExperimentRecord]
    broker_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    events: list[dict[str, object]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    deleted_below: dict[tuple[str, int], int] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)

    @property
    def kafka(self) -> Broker:
        """The broker that faults kill, pause and take records from."""
        return self.network.first

    def begin(self) -> None:
        """Start the clock of a schedule."""
        self.began_s = time.monotonic()
        self.events = []

    def note(self, what: str, **details: object) -> None:
        """Keep and print an event of the run."""
        at_s = round(time.monotonic() - self.began_s, 1)
        self.events.append({"at_s": at_s, "what": what, **details})
        said = " ".join(f"{name}={value}" for name, value in details.items())
        print(f"  {at_s:6.1f} s  {what} {said}", flush=True)
