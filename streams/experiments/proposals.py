"""Proposals of new arms: pure functions from record to record.

Why they are in the experiment's record: approving must add the arm and settle the proposal in one write, and
two people, or two workers that see the same drop, must not both succeed; the record's revisions give both.

::

    pending --approve--> approved (there is an arm, incubating)
       +-----reject----> rejected (is not proposed again)

The budget of generating is in the record, too, and is spent before it is used (:func:`reserve`): a process
that dies in the middle of a request has spent what it reserved.
"""

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from streams.errors import BudgetExhausted, DefinitionInvalid, LifecycleError
from streams.experiments.arms import ARMS_MAX, ELIGIBLE
from streams.experiments.definition import Arm, ExperimentRecord, Proposal, ProposalStatus, Spending
from streams.experiments.reader import Problems
from streams.experiments.validation import check_context, check_shares

__all__ = ["PROPOSALS_MAX", "add", "affordable", "approve", "find", "is_new", "reject", "reserve", "settle"]

PROPOSALS_MAX = 200
"""Most that a record keeps; of those decided the oldest give way."""


def is_new(record: ExperimentRecord, proposal: Proposal) -> bool:
    """Whether neither an arm, whatever its status, nor another proposal is or was the same."""
    shown = (proposal.levels, proposal.content)
    known = [(arm.levels, arm.content) for arm in record.arms]
    return shown not in known and shown not in [(each.levels, each.content) for each in record.proposals]


def add(
    record: ExperimentRecord, proposals: Sequence[Proposal], *, approve_them: bool = False, now_ms: int
) -> ExperimentRecord:
    """Add what is new of these proposals, as pending; return the record itself if nothing is.

    Parameters
    ----------
    record
        The experiment, live or paused.
    proposals
        Without ids.
    approve_them
        Approve each at once, as far as that is possible; the others stay pending.
    now_ms
        Present time.
    """
    _check_open(record)
    changed = record
    number = max((int(each.proposal_id[1:]) for each in record.proposals), default=0)
    for proposal in proposals:
        if not is_new(changed, proposal):
            continue
        number += 1
        name = "-".join(proposal.levels[factor.name] for factor in record.factors if proposal.levels)
        named = msgspec.structs.replace(
            proposal,
            proposal_id=f"p{number}",
            arm_id=name or _unused(changed, f"generated-{number}"),
            created_at_ms=now_ms,
        )
        changed = msgspec.structs.replace(changed, proposals=_kept((*changed.proposals, named)))
        if approve_them:
            with suppress(LifecycleError):  # it stays pending; whoever approves it is told why it cannot be
                changed = _approved(changed, named, now_ms)
    return record if changed is record else _next(record, changed, now_ms)


def _kept(proposals: tuple[Proposal, ...]) -> tuple[Proposal, ...]:
    """At most PROPOSALS_MAX; pending ones always stay."""
    surplus = max(len(proposals) - PROPOSALS_MAX, 0)
    decided = [each.proposal_id for each in proposals if each.status != "pending"][:surplus]
    return tuple(each for each in proposals if each.proposal_id not in decided)


def _unused(record: ExperimentRecord, name: str) -> str:
    """Return the name, or the name with the first number that no arm and no pending proposal has."""
    taken = {*record.newest_arms, *(each.arm_id for each in record.proposals if each.status == "pending")}
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def find(record: ExperimentRecord, proposal_id: str) -> Proposal:
    """Return a proposal.

    Raises
    ------
    LifecycleError
        If there is none with this id; the message names those that are pending.
    """
    for proposal in record.proposals:
        if proposal.proposal_id == proposal_id:
            return proposal
    pending = ", ".join(each.proposal_id for each in record.proposals if each.status == "pending") or "none"
    raise _refused(record, f"it has no proposal {proposal_id!r}; pending: {pending}")


def approve(record: ExperimentRecord, proposal_id: str, *, now_ms: int) -> ExperimentRecord:
    """Make a pending proposal an arm, incubating."""
    proposal = _pending(record, proposal_id)
    _check_open(record)
    return _next(record, _approved(record, proposal, now_ms), now_ms)


def reject(record: ExperimentRecord, proposal_id: str, *, now_ms: int) -> ExperimentRecord:
    """Settle a pending proposal without an arm; the same is not proposed again."""
    return _next(record, _decided(record, _pending(record, proposal_id), "rejected", now_ms), now_ms)


def _check_open(record: ExperimentRecord) -> None:
    if record.status not in ("live", "paused"):
        raise _refused(record, f"it is {record.status}; only a live or paused one gets new arms")


def _pending(record: ExperimentRecord, proposal_id: str) -> Proposal:
    proposal = find(record, proposal_id)
    if proposal.status != "pending":
        raise _refused(record, f"proposal {proposal_id} is {proposal.status} already")
    return proposal


def _approved(record: ExperimentRecord, proposal: Proposal, now_ms: int) -> ExperimentRecord:
    levels = {factor.name: factor.levels for factor in record.factors}
    if proposal.levels and not (
        proposal.levels.keys() == levels.keys()
        and all(level in levels[name] for name, level in proposal.levels.items())
    ):
        raise _refused(record, f"the factors have changed since {proposal.proposal_id}; reject it")
    if proposal.levels and proposal.arm_id in record.newest_arms:
        raise _refused(record, f"there is an arm {proposal.arm_id} by now; reject {proposal.proposal_id}")
    others = tuple(each for each in record.proposals if each.proposal_id != proposal.proposal_id)
    name = _unused(msgspec.structs.replace(record, proposals=others), proposal.arm_id)
    arm = Arm(
        arm_id=name,
        status="incubating",
        levels=proposal.levels,
        content=proposal.content,
        proposal=proposal.proposal_id,
    )
    arms = (*record.arms, arm)
    _check_arms(record, arms)
    settled = _decided(record, msgspec.structs.replace(proposal, arm_id=name), "approved", now_ms)
    return msgspec.structs.replace(settled, arms=arms)


def _check_arms(record: ExperimentRecord, arms: Sequence[Arm]) -> None:
    """Hold one arm more against what a definition is held against."""
    problems = Problems()
    if len(arms) > ARMS_MAX:
        problems.add("arms", f"{len(arms)} arms exceed {ARMS_MAX}")
    check_shares(record.policy, sum(arm.status in ELIGIBLE for arm in arms), problems)
    check_context(record.policy, record.versions[-1], len(arms), problems)
    try:
        problems.raise_if_any(f"experiment {record.experiment_id}")
    except DefinitionInvalid as error:
        raise _refused(record, f"with one arm more: {'; '.join(error.problems)}") from error


def _decided(
    record: ExperimentRecord, proposal: Proposal, status: ProposalStatus, now_ms: int
) -> ExperimentRecord:
    settled = msgspec.structs.replace(proposal, status=status, decided_at_ms=now_ms)
    proposals = tuple(
        settled if each.proposal_id == proposal.proposal_id else each for each in record.proposals
    )
    return msgspec.structs.replace(record, proposals=proposals)


def affordable(record: ExperimentRecord, tokens_per_request: int) -> int:
    """Return how many requests an experiment's budget still pays for."""
    budget, spent = record.proposing, record.spending
    by_tokens = (budget.max_tokens - spent.tokens) // max(tokens_per_request, 1)
    return max(min(budget.max_requests - spent.requests, by_tokens), 0)


def reserve(record: ExperimentRecord, cost: Spending, *, now_ms: int) -> ExperimentRecord:
    """Spend what a generation may cost at most, before it begins.

    Raises
    ------
    BudgetExhausted
        If the budget does not pay for it.
    """
    budget, spent = record.proposing, record.spending
    spending = Spending(requests=spent.requests + cost.requests, tokens=spent.tokens + cost.tokens)
    if cost.requests < 1 or spending.requests > budget.max_requests or spending.tokens > budget.max_tokens:
        raise BudgetExhausted(
            f"experiment {record.experiment_id} has spent {spent.requests} of {budget.max_requests} requests"
            f" and {spent.tokens} of {budget.max_tokens} tokens; that does not pay for one more",
            where="proposals",
            action="raise proposals.max_requests or proposals.max_tokens in its definition",
        )
    return _next(record, msgspec.structs.replace(record, spending=spending), now_ms)


def settle(record: ExperimentRecord, reserved: Spending, used: Spending, *, now_ms: int) -> ExperimentRecord:
    """Give back what was reserved and not used."""
    spending = Spending(
        requests=record.spending.requests - reserved.requests + used.requests,
        tokens=record.spending.tokens - reserved.tokens + used.tokens,
    )
    return _next(record, msgspec.structs.replace(record, spending=spending), now_ms)


def _next(record: ExperimentRecord, changed: ExperimentRecord, now_ms: int) -> ExperimentRecord:
    return msgspec.structs.replace(changed, revision=record.revision + 1, updated_at_ms=now_ms)


def _refused(record: ExperimentRecord, why: str) -> LifecycleError:
    return LifecycleError(
        f"experiment {record.experiment_id}: {why}",
        action=f"`bandit-streams proposals list {record.experiment_id}` shows what there is",
    )
