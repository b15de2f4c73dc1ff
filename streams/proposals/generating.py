"""Generating proposals for one experiment: budget, request, moderation, and the record that they go to.

What: :func:`generate` reserves what the request may cost at most, asks the generator, asks the moderator
about every variant, gives back what was not spent and adds what was found, pending or approved at once. The
budget is spent first because two processes may generate for the same experiment, and one may die meanwhile.

Cost: three writes of the experiment's record, besides the requests. Nothing here is in the way of an
allocation.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from streams.allocations import Allocation
from streams.errors import RevisionConflict
from streams.experiments import proposals
from streams.experiments.definition import ExperimentRecord, Proposal, Spending
from streams.experiments.store import ExperimentStore
from streams.proposals.prompts import Candidate, Prompt, prompt_of

__all__ = ["Generated", "Generator", "Meter", "Moderator", "Outcome", "add_proposals", "change", "generate"]

CONFLICTS_MAX = 10


class Meter:
    """What the requests so far took, also of those that failed.

    Attributes
    ----------
    requests, tokens
        Numbers of each.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0


class Generated(NamedTuple):
    """Variants, or why the model refuses to make any."""

    candidates: Sequence[Candidate]
    refusal: str = ""


class Generator(Protocol):
    """Makes variants."""

    @property
    def model(self) -> str:
        """Name of what generates, for people."""
        ...

    def tokens_of(self, prompt: Prompt) -> int:
        """Most tokens that one request may cost."""
        ...

    async def generate(self, prompt: Prompt, max_attempts: int, meter: Meter) -> Generated:
        """Ask for variants, in at most so many requests; the meter says what they took.

        Raises
        ------
        EndpointFailed
            If there was no usable answer.
        ConfigError
            If asking again cannot help.
        """
        ...


class Moderator(Protocol):
    """Judges text before anybody is shown it."""

    async def objection(self, text: str) -> str:
        """Why the text must not be shown; empty if it may.

        Raises
        ------
        EndpointFailed, ConfigError
            If there is no judgement; nothing is proposed then.
        """
        ...


class Outcome(NamedTuple):
    """What came of it: proposals added, and why variants were refused."""

    added: tuple[Proposal, ...]
    refused: tuple[str, ...]
    used: Spending


async def change(
    store: ExperimentStore, experiment_id: str, step: Callable[[ExperimentRecord], ExperimentRecord]
) -> ExperimentRecord:
    """Apply a step to the newest record, again if somebody else was first; it may leave it as it is.

    Raises
    ------
    RevisionConflict
        If somebody was first CONFLICTS_MAX times.
    """
    attempt = 0
    while True:
        attempt += 1
        await store.view.catch_up()
        record = store.get(experiment_id)
        changed = step(record)
        if changed is record:
            return record
        try:
            return await store.write(changed)
        except RevisionConflict:
            if attempt >= CONFLICTS_MAX:
                raise


async def add_proposals(
    store: ExperimentStore,
    experiment_id: str,
    found: Sequence[Proposal],
    *,
    approve_them: bool = False,
    now_ms: Callable[[], int],
) -> tuple[Proposal, ...]:
    """Add what is new of these to the experiment's record; return what was added, as it is then."""
    known: set[str] = set()

    def step(record: ExperimentRecord) -> ExperimentRecord:
        known.clear()
        known.update(each.proposal_id for each in record.proposals)
        return proposals.add(record, found, approve_them=approve_them, now_ms=now_ms())

    record = await change(store, experiment_id, step)
    return tuple(each for each in record.proposals if each.proposal_id not in known)


async def generate(
    store: ExperimentStore,
    experiment_id: str,
    allocation: Allocation,
    generator: Generator,
    moderator: Moderator | None,
    *,
    count: int = 1,
    dropped: str | None = None,
    on_drop: bool = False,
    max_attempts: int,
    now_ms: Callable[[], int],
) -> Outcome:
    """Generate variants of an experiment's arms and add them as proposals.

    Parameters
    ----------
    store, experiment_id, allocation
        The experiment, and how its arms do.
    generator, moderator
        Who makes variants, and who judges them; without a moderator nothing is approved by itself.
    count
        Variants wanted.
    dropped
        The arm whose place is free.
    on_drop
        Whether that is why.
    max_attempts
        Most requests.
    now_ms
        Wall clock, epoch ms.

    Raises
    ------
    BudgetExhausted
        If the experiment's budget does not pay for a request.
    EndpointFailed, ConfigError
        If there was no usable answer or no judgement.
    """
    prompt = prompt_of(store.get(experiment_id), allocation, count)
    reserved = Spending()

    def reserve(record: ExperimentRecord) -> ExperimentRecord:
        nonlocal reserved
        tokens = generator.tokens_of(prompt)
        attempts = min(max_attempts, proposals.affordable(record, tokens))
        reserved = Spending(requests=attempts, tokens=attempts * tokens)
        return proposals.reserve(record, reserved, now_ms=now_ms())

    await change(store, experiment_id, reserve)
    meter = Meter()
    made: list[Proposal] = []
    refused: list[str] = []
    try:
        generated = await generator.generate(prompt, reserved.requests, meter)
        refused += [generated.refusal] if generated.refusal else []
        for candidate in generated.candidates:
            if moderator is not None and (objection := await moderator.objection(candidate.content)):
                refused.append(objection)
                continue
            made.append(
                Proposal(
                    source="generated",
                    dropped=dropped,
                    on_drop=on_drop,
                    content=candidate.content,
                    rationale=candidate.rationale,
                    model=generator.model,
                )
            )
    finally:
        used = Spending(requests=meter.requests, tokens=meter.tokens)
        record = await change(
            store,
            experiment_id,
            lambda record: proposals.settle(record, reserved, used, now_ms=now_ms()),
        )
    automatic = record.proposing.auto_approve and moderator is not None
    added = await add_proposals(store, experiment_id, made, approve_them=automatic, now_ms=now_ms)
    return Outcome(added, tuple(refused), used)
