"""Arms in a definition document: as a list, as combinations of design factors, or as some of these."""

import itertools
import math
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from streams.experiments.definition import ArmStatus, Factor, Policy
from streams.experiments.reader import Problems, Reader

__all__ = [
    "ARMS_MAX",
    "ELIGIBLE",
    "ArmEntry",
    "check_number_of_arms",
    "read_arms",
    "read_factors",
    "read_levels",
    "read_named_arm",
]

ARMS_MAX = 1000
LEVEL_MAX_CHARACTERS = 128
ELIGIBLE: tuple[ArmStatus, ...] = ("incubating", "active")


class ArmEntry(Struct, frozen=True, kw_only=True):
    """An arm as a document has it; ``status`` and ``version`` are ``None`` where it does not say."""

    arm_id: str
    status: ArmStatus | None = None
    version: int | None = None
    levels: dict[str, str] = {}
    content: str | None = None


def read_factors(reader: Reader) -> Iterable[Factor]:
    """Yield the design factors; what is wrong is noted."""
    for name, levels in reader.pairs("factors"):
        path = reader.at(f"factors.{name}")
        if (found := read_levels(levels, path, reader.problems)) is not None:
            reader.check_identifier(f"factors.{name}", name)
            yield Factor(name=name, levels=found)


def read_levels(value: object, path: str, problems: Problems) -> tuple[str, ...] | None:
    """Read the levels of a factor or feature; None if it is no list of them."""
    if not isinstance(value, list) or not value:
        problems.add(path, f"{value!r} is not a list of levels; write e.g. [small, large]")
        return None
    for index, level in enumerate(value):
        if not isinstance(level, str):
            problems.add(f"{path}[{index}]", f"{level!r} is not text; put it in quotes")
        elif not level or len(level) > LEVEL_MAX_CHARACTERS or not level.isprintable():
            problems.add(
                f"{path}[{index}]", f"{level!r} is not 1 to {LEVEL_MAX_CHARACTERS} printable characters"
            )
    texts = [level for level in value if isinstance(level, str)]
    for repeated in sorted({level for level in texts if texts.count(level) > 1}):
        problems.add(path, f"the level {repeated!r} occurs twice; remove one")
    return tuple(texts)


def read_arms(reader: Reader, factors: Sequence[Factor]) -> tuple[ArmEntry, ...]:
    """Arms as listed; with factors, all combinations of their levels, or of these the ones listed."""
    combinations = _arms_of_factors(reader, factors) if reader.has("factors") else ()
    if reader.has("factors") and not reader.has("arms"):
        return combinations
    levels = {arm.arm_id: arm.levels for arm in combinations}
    arms = []
    for path, item in reader.items("arms"):
        if isinstance(item, str):
            arm = ArmEntry(arm_id=item)
            reader.check_identifier(path, item)
        elif isinstance(item, dict):
            arm = _read_arm(Reader(item, path, reader.problems))
        else:
            reader.problems.add(
                path, f"{item!r} is neither text nor a mapping with `id`; put a number in quotes"
            )
            continue
        if levels and arm.arm_id and arm.arm_id not in levels and arm.content is None:
            reader.problems.add(
                path,
                f"{arm.arm_id} is no combination of the factors' levels; join one level of each of"
                f" {', '.join(factor.name for factor in factors)} by '-', e.g. {next(iter(levels))}, or give"
                " the arm `content` of its own",
            )
        arms.append(msgspec.structs.replace(arm, levels=levels.get(arm.arm_id, {})))
    ids = [arm.arm_id for arm in arms]
    for repeated in sorted({arm_id for arm_id in ids if arm_id and ids.count(arm_id) > 1}):
        reader.problem("arms", f"the id {repeated} occurs twice; remove or rename one")
    return tuple(arms)


def _read_arm(reader: Reader) -> ArmEntry:
    active: ArmStatus = "active"
    arm = ArmEntry(
        arm_id=reader.identifier("id"),
        status=reader.choice("status", active, ArmStatus) if reader.has("status") else None,
        version=reader.whole("version", 1, low=1, high=ARMS_MAX) if reader.has("version") else None,
        content=reader.text("content") if reader.has("content") else None,
    )
    reader.finish()
    return arm


def _arms_of_factors(reader: Reader, factors: Sequence[Factor]) -> tuple[ArmEntry, ...]:
    """Arms of a full factorial design; an arm's id is its levels in the order of factors, joined by ``-``."""
    if math.prod(len(factor.levels) for factor in factors) > ARMS_MAX:
        reader.problem("factors", f"their product exceeds {ARMS_MAX} arms; use fewer levels")
        return ()
    arms = [
        ArmEntry(
            arm_id="-".join(levels),
            levels={factor.name: level for factor, level in zip(factors, levels, strict=True)},
        )
        for levels in itertools.product(*(factor.levels for factor in factors))
        if levels
    ]
    for factor in factors:
        for level in factor.levels:
            reader.check_identifier(f"factors.{factor.name}", level)
    ids = [arm.arm_id for arm in arms]
    for repeated in sorted({arm_id for arm_id in ids if ids.count(arm_id) > 1}):
        reader.problem("factors", f"two combinations of levels give the arm id {repeated}; rename a level")
    return tuple(arms)


def read_named_arm(reader: Reader, key: str, arms: Sequence[ArmEntry], eligible: Sequence[str]) -> str | None:
    """Read the name of an arm that gets traffic; None if the key is absent."""
    if not reader.has(key):
        return None
    name = reader.text(key)
    ids = [arm.arm_id for arm in arms]
    if name and ids and name not in ids:
        shown = ", ".join(ids[:10]) + (", ..." if len(ids) > 10 else "")
        reader.problem(key, f"{name} is not an arm; the arms are {shown}")
    elif name and ids and name not in eligible:
        reader.problem(key, f"{name} gets no traffic by its status; name an active arm")
    return name


def check_number_of_arms(reader: Reader, arms: Sequence[ArmEntry], policy: Policy) -> None:
    """Note a problem if there are too few or too many arms, or none gets traffic."""
    key = "factors" if reader.has("factors") and not reader.has("arms") else "arms"
    if not arms:
        if not reader.has(key):
            reader.problem("arms", "missing; list the arms, or give factors whose product they are")
        elif reader.value(key) in ([], {}):
            reader.problem(key, "empty; give at least two arms")
    elif len(arms) > ARMS_MAX:
        reader.problem(key, f"{len(arms)} arms exceed {ARMS_MAX}; use fewer")
    elif len(arms) == 1 and policy.comparison == 0:
        reader.problem(
            key, "one arm alone has nothing to be compared with; add an arm, or set policy.comparison"
        )
    elif all(arm.status is not None and arm.status not in ELIGIBLE for arm in arms):
        reader.problem(key, "no arm gets traffic by its status; make at least one active")
