"""The thin store: reading and writing records of the topic ``experiments``.

Writing is optimistic. A record says which revision it follows; the store reads the topic to its end before it
writes and again after. If another writer's record with the same revision stands before ours, readers keep to
that one, and so do we: its record is written once more behind ours, because compaction keeps the last, and
the caller is told to read and decide again. Cost: one round trip to read, one to write, one to read back.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from streams.config import Settings
from streams.errors import BrokerUnavailable, RevisionConflict, UnknownExperiment
from streams.experiments.definition import ExperimentRecord, decode_record, encode_record
from streams.experiments.view import ExperimentsView


class ExperimentStore:
    """Reads and writes experiments; an async context manager.

    Parameters
    ----------
    settings
        Addresses, security and topic names.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.topic("experiments")
        self._view = ExperimentsView(settings)
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        await self._view.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._view.stop()
        finally:  # also where whoever waits for it is cancelled
            if self._producer is not None:
                await self._producer.stop()

    @property
    def view(self) -> ExperimentsView:
        """The view behind the store."""
        return self._view

    def find(self, experiment_id: str) -> ExperimentRecord | None:
        """Newest record, ``None`` if there is none."""
        return self._view.get(experiment_id)

    def get(self, experiment_id: str) -> ExperimentRecord:
        """Newest record.

        Raises
        ------
        UnknownExperiment
            If there is none.
        """
        record = self.find(experiment_id)
        if record is None:
            raise UnknownExperiment(
                f"no experiment {experiment_id!r}",
                where=self._topic,
                action="`bandit-streams experiments list --all` shows those there are",
            )
        return record

    def all(self) -> list[ExperimentRecord]:
        """Newest record of every experiment, by id."""
        return [record for _, record in sorted(self._view.items())]

    async def write(self, record: ExperimentRecord) -> ExperimentRecord:
        """Write the record that follows revision ``record.revision - 1`` (0: a new experiment).

        Raises
        ------
        RevisionConflict
            If the newest record is not the one that it follows, or another writer was first; nothing is
            changed then.
        BrokerUnavailable, DeadlineExceeded
            If Kafka does not answer; whether the record was written is then unknown, reading again tells.
        """
        await self._view.catch_up()
        current = self.find(record.experiment_id)
        revision = 0 if current is None else current.revision
        if record.revision != revision + 1:
            raise self._conflict(record, current)
        await self._produce(record)
        await self._view.catch_up()
        winner = self.get(record.experiment_id)
        # As it reads back: bytes may differ, since of a value that was pickled a default is written, too.
        if winner != decode_record(record.experiment_id, encode_record(record)):
            await self._produce(winner)
            raise self._conflict(record, winner)
        return winner

    async def change(
        self, experiment_id: str, step: Callable[[ExperimentRecord], ExperimentRecord]
    ) -> ExperimentRecord:
        """Apply a lifecycle step to the newest record and write the result.

        Raises
        ------
        UnknownExperiment, LifecycleError, RevisionConflict
        """
        await self._view.catch_up()
        return await self.write(step(self.get(experiment_id)))

    async def _produce(self, record: ExperimentRecord) -> None:
        try:
            if self._producer is None:
                self._producer = AIOKafkaProducer(
                    **self._settings.kafka_options(),
                    acks="all",
                    enable_idempotence=True,
                    max_request_size=self._settings.journal_max_message_bytes,
                )
                await self._producer.start()
            await self._producer.send_and_wait(
                self._topic, encode_record(record), key=record.experiment_id.encode()
            )
        except KafkaError as error:
            raise BrokerUnavailable(
                f"experiment {record.experiment_id} may not have been written: {error!r}",
                where=self._topic,
                action="run the same command again; `bandit-streams doctor` tells what is wrong",
            ) from error

    def _conflict(self, record: ExperimentRecord, winner: ExperimentRecord | None) -> RevisionConflict:
        now = "there is none now" if winner is None else f"its newest revision is {winner.revision}"
        return RevisionConflict(
            f"experiment {record.experiment_id} was changed by someone else while revision"
            f" {record.revision} was made: {now}; nothing of ours holds",
            where=self._topic,
            action="look at the new state and run the same command again if it is still wanted",
        )
