"""Composition root: what a worker process is made of, how it starts and how it ends.

One asyncio loop holds the Faust app (join), the allocator beside it, and the web server. The process ends
on SIGTERM or SIGINT (the batches in hand are finished first), and by itself, with exit status 1 and one
line that says why, when a part fails for good or a partition stalls: a supervisor starts it again, and all
state is in the journal.
"""

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any, cast

import faust
import uvloop
from aiokafka import AIOKafkaProducer
from faust.app.base import BootStrategy

from streams.agents.context import JoinContext
from streams.agents.join import Join
from streams.agents.read_back import ReadBack
from streams.agents.source import SourceTopics, explained
from streams.config import Settings
from streams.deadletters import DeadLetterProducer
from streams.errors import BanditError, DeadlineExceeded
from streams.experiments.view import ExperimentsView
from streams.join.definitions import Definitions
from streams.metrics import Metrics
from streams.state.folder_lock import hold_folder
from streams.state.kafka_journal import KafkaJournal
from streams.state.store import StoreOptions
from streams.state.table import JournalTable, RawSchema, Shards
from streams.topics import require_topics
from streams.transport import Chunk, ChunkConsumer, ChunkTransport
from streams.web import Health, WebServer

__all__ = ["Roles", "create_faust_app", "run_worker"]

log = logging.getLogger(__name__)

Roles = frozenset[str]
VERIFY_DEADLINE_S = 15.0
STALL_CHECK_S = 1.0
SUSPENDED_S = 5.0
"""A gap between two stall checks longer than this: the process itself was stopped, not a partition."""
SILENT_MS = 5_000
"""Brokers that have not answered the view of the definitions for this long are away: nothing can move."""
ALLOCATOR_STOP_S = 2.0
COLLECT_EVERY_OBJECTS = (100_000, 50, 20)
"""Thresholds of the garbage collector. At Python's own (700, 10, 10) it looks through the records in hand
again and again, a fifth of a busy worker's time; what it frees is a few task and exception cycles."""
EXIT_MARGIN_S = 8.0
"""Beyond ``shutdown_deadline_ms``: for closing databases and Kafka clients."""


class _KafkaOnly(BootStrategy):
    """Faust's consumer, agents and tables; none of its leader and reply topics, which it would create."""

    def kafka_consumer(self) -> Any:
        return [self.app.consumer]


def create_faust_app(settings: Settings) -> faust.App:
    """Make the Faust app of the join: settings and transport, no agents or tables yet."""
    folder = settings.data_dir / "faust"
    folder.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        settings.group,
        broker="kafka://" + settings.bootstrap_servers.replace(",", ";kafka://"),
        datadir=str(folder),
        store="memory://",  # our table brings its own store
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        # Nothing is committed; this is also the pace of a check that only looks at committed offsets.
        broker_commit_interval=3600.0,
        stream_recovery_delay=0.0,
        # Messages are chunks of up to a megabyte and journal records of up to several.
        stream_buffer_maxsize=32,
        table_standby_replicas=settings.standby_replicas,
        broker_session_timeout=settings.session_timeout_ms / 1000,
        broker_heartbeat_interval=settings.session_timeout_ms / 5000,
        broker_rebalance_timeout=60.0,
        # The consumer thread heartbeats by itself; a worker that does not fetch is found by the stall check.
        broker_max_poll_interval=86_400.0,
    )
    app.boot_strategy = _KafkaOnly(app)
    transport = ChunkTransport(
        app.conf.broker_consumer,
        app,
        kafka_options=settings.kafka_options(),
        fetch_bytes=settings.batch_max_bytes,
    )
    app.transport = transport
    app.producer_transport = transport
    return app


class _WorkerProcess:
    """One worker: its parts, started in order and stopped in the reverse.

    Parameters
    ----------
    settings
        Settings of the process.
    roles
        ``join``, ``allocator`` or both.
    """

    def __init__(self, settings: Settings, roles: Roles) -> None:
        self.settings = settings
        self.roles = roles
        self.metrics = Metrics(
            max_experiments=settings.metrics_max_experiments, version=version("bandit-streams")
        )
        self.health = Health(stall_deadline_ms=settings.stall_deadline_ms)
        self.web = WebServer(
            self.health,
            self.metrics.registry,
            host=settings.web_host,
            port=settings.web_port,
            loop_lag=self.metrics.event_loop_lag_seconds,
        )
        self._ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def end(self, error: BaseException | None = None) -> None:
        """Ask the process to end, because of ``error`` or because it was told to."""
        if not self._ended.done():
            self._ended.set_result(error)

    async def run(self) -> int:
        """Start, serve until told to end, stop; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end)
        error: BaseException | None = None
        try:
            async with AsyncExitStack() as stack:
                try:
                    await self._start(stack)
                    error = await self._ended
                except BanditError as failure:
                    error = failure
                # Said before anything is stopped: what does not stop may cost the process its last words.
                self._say_why(error)
                self._bound_the_end(0 if error is None else 1)
        except BanditError as failure:
            self._say_why(failure)
            error = failure
        return 0 if error is None else 1

    def _say_why(self, error: BaseException | None) -> None:
        if error is None:
            log.info("worker %s ends", self.settings.worker_id)
        else:
            log.error("worker %s: %s", self.settings.worker_id, error, exc_info=_trace(error))

    async def _start(self, stack: AsyncExitStack) -> None:
        if "join" in self.roles:
            stack.enter_context(hold_folder(self.settings.data_dir / self.settings.group))
        await stack.enter_async_context(self.web)
        await require_topics(self.settings)
        view = ExperimentsView(self.settings)
        await view.start()
        stack.push_async_callback(view.stop)
        if "join" in self.roles:
            await stack.enter_async_context(self._join(view))
        if "allocator" in self.roles:
            await stack.enter_async_context(self._allocator(view))
        if "join" not in self.roles:
            self.health.ok("start")
        await stack.enter_async_context(self._stall_check(view))

    def _bound_the_end(self, status: int) -> None:
        """End the process in any case: Kafka clients wait for ever for a broker that does not answer."""
        bound_s = self.settings.shutdown_deadline_ms / 1000 + EXIT_MARGIN_S

        def end() -> None:
            log.warning(
                "clients of Kafka did not end within %.1f s; the process ends without them. What they had in "
                "flight is redone by the next owner",
                bound_s,
            )
            logging.shutdown()
            os._exit(status)

        timer = threading.Timer(bound_s, end)
        timer.daemon = True  # it goes on while the interpreter waits for other threads, and never holds it up
        timer.start()

    @asynccontextmanager
    async def _join(self, view: ExperimentsView) -> AsyncIterator[None]:
        settings = self.settings
        app = create_faust_app(settings)
        options = settings.kafka_options()
        producer = AIOKafkaProducer(
            acks="all", enable_idempotence=True, linger_ms=5, compression_type="zstd", **options
        )
        dead_letters = DeadLetterProducer(settings)
        source = SourceTopics(producer, options, settings.partitions)
        journal = KafkaJournal(
            topic=settings.topic("journal"),
            kafka_options=options,
            max_record_bytes=settings.journal_max_message_bytes,
        )
        queues: list[asyncio.Queue[Any]] = []
        context = JoinContext(
            settings=settings,
            metrics=self.metrics,
            health=self.health,
            view=view,
            definitions=Definitions(),
            producer=producer,
            dead_letters=dead_letters,
            source=source,
            read_back=ReadBack(settings),
            consumer=lambda: cast("ChunkConsumer", app.consumer),
            crash=self.end,
            has_undelivered=lambda: any(not queue.empty() for queue in queues),
        )
        log.info("compiled kernel: %s", context.kernel_state)
        shards = self._shards(journal)
        join = Join(context, shards)
        _attach(app, settings, join, shards, queues)
        async with AsyncExitStack() as stack:
            with explained(settings.bootstrap_servers):
                await producer.start()
            stack.push_async_callback(producer.stop)
            await stack.enter_async_context(dead_letters)
            stack.push_async_callback(source.stop)
            stack.push_async_callback(journal.stop)
            context.read_back.start()
            stack.push_async_callback(context.read_back.stop)
            join.start()
            running = asyncio.get_running_loop().create_task(self._run_faust(app), name="faust")
            try:
                yield
            finally:
                await join.stop()
                await self._stop_faust(app, running)

    def _shards(self, journal: KafkaJournal) -> Shards:
        settings = self.settings
        return Shards(
            settings.data_dir / settings.group,
            journal,
            options=StoreOptions(
                block_cache_bytes=settings.rocksdb.block_cache_bytes,
                write_buffer_bytes=settings.rocksdb.write_buffer_bytes,
                unit_cache_bytes=settings.unit_cache_bytes,
            ),
            verify_deadline_s=VERIFY_DEADLINE_S,
            recovery_deadline_s=settings.recovery_deadline_ms / 1000,
            on_reset=self._on_reset,
        )

    async def _run_faust(self, app: faust.App) -> None:
        try:
            await app.start()
            await app.wait_until_stopped()
        except BaseException as error:
            self.end(error)
            raise
        self.end(app.crash_reason)

    async def _stop_faust(self, app: faust.App, running: asyncio.Task[None]) -> None:
        deadline_s = self.settings.shutdown_deadline_ms / 1000
        try:
            async with asyncio.timeout(deadline_s):
                await app.stop()
        except TimeoutError:
            log.warning("Faust did not stop within %.1f s; the process ends without it", deadline_s)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def _on_reset(self, number: int, reason: str) -> None:
        log.error(
            "partition %d: its database did not match the journal (%s); set aside and rebuilt", number, reason
        )
        self.metrics.journal_resets_total.inc()

    @asynccontextmanager
    async def _allocator(self, view: ExperimentsView) -> AsyncIterator[None]:
        from streams.allocator.service import AllocatorService, wall_clock_ms  # noqa: PLC0415 - a join-only worker needs no scipy
        from streams.proposals.service import Proposer  # noqa: PLC0415

        service = AllocatorService(self.settings, view, self.metrics)
        await service.start()
        proposer = Proposer(self.settings, view, service, self.metrics, now_ms=wall_clock_ms)
        await proposer.start()
        watch = asyncio.get_running_loop().create_task(service.wait_until_stopped())
        watch.add_done_callback(lambda _: self.end(service.crash_reason))
        try:
            yield
        finally:
            try:
                async with asyncio.timeout(ALLOCATOR_STOP_S):
                    await proposer.stop()
                    await service.stop()
            except TimeoutError:
                log.warning("the allocator's clients did not stop within %.1f s", ALLOCATOR_STOP_S)
            watch.cancel()

    @asynccontextmanager
    async def _stall_check(self, view: ExperimentsView) -> AsyncIterator[None]:
        async def check() -> None:
            while True:
                before_s = time.monotonic()
                await asyncio.sleep(STALL_CHECK_S)
                passed_s = time.monotonic() - before_s
                is_silent = view.age_ms() > SILENT_MS
                if is_silent:
                    self.health.fail(
                        "brokers", "no broker answers", "check the brokers; it goes on by itself"
                    )
                else:
                    self.health.ok("brokers")
                if is_silent or passed_s > SUSPENDED_S:
                    self.health.excuse(passed_s)
                for name, stall in self.health.stalls().items():
                    self.metrics.watchdog_stalls_total.inc()
                    self.end(DeadlineExceeded(stall.why, where=name, action=stall.action))

        task = asyncio.get_running_loop().create_task(check())
        try:
            yield
        finally:
            task.cancel()


def _attach(
    app: faust.App, settings: Settings, join: Join, shards: Shards, queues: list[asyncio.Queue[Any]]
) -> None:
    """Give the Faust app its table and its one agent; ``queues`` gets the queue that feeds the agent."""
    journal = settings.topic("journal")
    app.tables.add(JournalTable(app, topic=journal, shards=shards, hand=join.hand, release=join.release))
    sources = app.topic(
        settings.topic("exposures"), settings.topic("conversions"), schema=RawSchema(), acks=False
    )

    @app.agent(sources, name="join")
    async def receive(stream: Any) -> None:
        queues[:] = [stream.channel.queue]
        async for chunk in stream:
            join.accept(cast("Chunk", chunk))


def _trace(error: BaseException) -> BaseException | None:
    """Return what to print a traceback of: errors nobody expected; ours say what to do."""
    return None if isinstance(error, BanditError) else error


def run_worker(settings: Settings, roles: Roles) -> int:
    """Run a worker until SIGTERM, SIGINT or a failure that needs a restart.

    Returns
    -------
    Exit status: 0 if told to end, 1 otherwise.
    """

    async def main() -> int:
        return await _WorkerProcess(settings, roles).run()

    gc.freeze()  # modules and settings: no garbage, ever
    gc.set_threshold(*COLLECT_EVERY_OBJECTS)
    if log.getEffectiveLevel() > logging.DEBUG:
        for chatty in ("aiokafka", "faust", "mode"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
    return uvloop.run(main())
