"""What the owner tasks of one worker share."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aiokafka import AIOKafkaProducer

from streams.agents.read_back import ReadBack
from streams.agents.source import SourceTopics
from streams.config import Settings
from streams.deadletters import DeadLetterProducer
from streams.experiments.view import ExperimentsView
from streams.join.definitions import Definitions
from streams.join.kernel import KERNEL, Kernel
from streams.join.step import Limits
from streams.metrics import Metrics
from streams.transport import ChunkConsumer
from streams.web import Health

__all__ = ["SOURCES", "JoinContext"]

SOURCES = ("exposures", "conversions")


@dataclass(frozen=True, kw_only=True)
class JoinContext:
    """Collaborators and settings of the join in one worker.

    Attributes
    ----------
    consumer
        Faust's consumer; a callable, because Faust makes it late.
    crash
        Ends the worker with this error: for what no retry in place can mend.
    has_undelivered
        Whether Faust holds chunks that it has not handed over yet.
    clock_ms
        Wall clock, epoch ms; only claims and idleness look at it.
    """

    settings: Settings
    metrics: Metrics
    health: Health
    view: ExperimentsView
    definitions: Definitions
    producer: AIOKafkaProducer
    dead_letters: DeadLetterProducer
    source: SourceTopics
    read_back: ReadBack
    consumer: Callable[[], ChunkConsumer]
    crash: Callable[[BaseException], None]
    has_undelivered: Callable[[], bool]
    clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    limits: Limits = field(init=False)
    kernel: Kernel | None = field(init=False)
    topic_names: dict[str, str] = field(init=False)
    # One step a turn of the event loop: without it all partitions compute in the same turn, and Faust,
    # which needs
    # several turns to hand over a chunk, starves.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _synced: list[int] = field(default_factory=lambda: [-1], init=False)  # revision of the view

    def __post_init__(self) -> None:
        settings = self.settings
        limits = Limits(
            n_partitions=settings.partitions,
            grace_ms=settings.grace_ms,
            max_ahead_ms=settings.max_ahead_ms,
            unit_max_events=settings.unit_max_events,
        )
        object.__setattr__(self, "limits", limits)
        object.__setattr__(self, "kernel", KERNEL if settings.compiled_kernel else None)
        names = {"exposures": settings.topic("exposures"), "conversions": settings.topic("conversions")}
        object.__setattr__(self, "topic_names", names)

    @property
    def kernel_state(self) -> str:
        """Whether the compiled kernel is in use, for the log."""
        if self.kernel is not None:
            return "in use"
        return "not built" if KERNEL is None else "off by the setting compiled_kernel"

    def sync_definitions(self) -> None:
        """Bring the compiled definitions up to the view; nothing to do unless it has changed."""
        if self.view.revision != self._synced[0]:
            self._synced[0] = self.view.revision
            self.definitions.sync(self.view.snapshot())

    async def definitions_fresh(self) -> bool:
        """Whether the view of the definitions is young enough to count by.

        A version written now takes effect a lead ahead; a view older than the lead may not know it.
        """
        if self.view.age_ms() > self.settings.definition_lead_ms:
            self.health.fail(
                "definitions",
                f"the topic experiments was last read {self.view.age_ms() / 1000:.0f} s ago",
                "check the brokers; counting goes on by itself when the topic can be read again",
            )
            await asyncio.sleep(0.5)
            return False
        self.health.ok("definitions")
        return True
