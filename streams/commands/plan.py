"""``bandit-streams plan``: days until an effect is found, by simulation."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bandit_core.league import CHUNK_RUNS, Detection
from bandit_core.policies import POLICIES, policy_from_definition
from bandit_core.scenarios import scenario_from_definition
from bandit_core.simulator import Scenario
from streams.commands.simulate import (
    Hours,
    definition_contestant,
    json_option,
    processes_option,
    progress,
    runs_option,
    seed_option,
    wide_console,
)
from streams.simulation.definition import equal_split
from streams.simulation.planning import DAY_HOURS, plan
from streams.simulation.report import detection_cells, plain
from streams.simulation.runner import Contestant, usable_processes


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked: the truth, who allocates, the same as an equal split, and the better arm's name."""

    scenario: Scenario
    contestant: Contestant
    equal: Contestant
    better: str


@click.command()
@click.option(
    "--experiment",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Definition file; its arms, policy, shares and lifecycle are what is planned.",
)
@click.option("--arms", type=click.IntRange(2, 100), help="Number of arms.  [default: 2]")
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    required=True,
    help="Rate of all arms but the better one, such as 0.05.",
)
@click.option(
    "--lift",
    type=click.FloatRange(0, min_open=True),
    required=True,
    help="Relative effect of the better arm: 0.1 makes 5.5% of 5%.",
)
@click.option("--traffic", type=click.IntRange(1), required=True, help="Units an hour, all arms together.")
@click.option(
    "--length", type=Hours(), default=28 * 24, show_default="28d", help="Longest time to wait: 28d."
)
@click.option(
    "--power",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.8,
    show_default=True,
    help="Probability with which the better arm is to be named.",
)
@click.option(
    "--policy",
    type=click.Choice(sorted(set(POLICIES) - {"contextual"})),
    metavar="NAME",
    help="Policy, where there is no definition.  [default: thompson]",
)
@runs_option
@seed_option
@processes_option
@json_option
def command(
    experiment: Path | None,
    arms: int | None,
    rate: float,
    lift: float,
    traffic: int,
    length: int,
    power: float,
    policy: str | None,
    runs: int,
    seed: int,
    processes: int | None,
    as_json: bool,
) -> None:
    """Say how many days it takes until the better arm is named with some probability.

    Simulates experiments with the effect that is hoped for, and looks at them once a day as `results` does:
    with confidence sequences, where looking is free. Beside it the same for an equal split, and for an equal
    split that is judged once, at an end fixed beforehand, by batched least squares: the shortest such end.
    """
    question = _question(experiment, arms, rate, lift, traffic, length, policy)
    console = Console(stderr=True)
    n_bars = 2 * -(-runs // CHUNK_RUNS)
    with progress(console, "planning", n_bars) as bar:
        found = plan(
            question.scenario,
            question.contestant,
            question.equal,
            power=power,
            n_runs=runs,
            seed=seed,
            processes=processes or usable_processes(),
            done=lambda: bar.advance(bar.task_ids[0]),
        )
    n_days = question.scenario.n_periods // DAY_HOURS
    if as_json:
        document = {
            "arms": question.scenario.n_arms,
            "better": question.better,
            "rate": rate,
            "lift": lift,
            "traffic": traffic,
            "power": power,
            "runs": runs,
            "seed": seed,
            "days_simulated": n_days,
            "ways": [{"way": way, **asdict(each)} for way, each in found.items()],
        }
        click.echo(json.dumps(plain(document), ensure_ascii=False, allow_nan=False))
        return
    _show(question, found, rate, lift, traffic, power, runs, seed)


def _question(
    experiment: Path | None,
    arms: int | None,
    rate: float,
    lift: float,
    traffic: int,
    length: int,
    policy: str | None,
) -> _Question:
    uniform = policy_from_definition("uniform")
    if experiment is None:
        n_arms, better = arms or 2, (arms or 2) - 1
        contestant = Contestant(policy or "thompson", policy_from_definition(policy or "thompson"))
        equal, sign, name = Contestant("uniform", uniform), 1.0, f"arm {better + 1}"
    else:
        if arms is not None or policy is not None:
            raise click.UsageError("--arms and --policy come from the definition; leave them out")
        contestant = definition_contestant(experiment)
        record = contestant.record
        if record is None:
            raise click.UsageError("--experiment: no definition in it")
        if record.policy.algorithm == "contextual":
            raise click.UsageError(
                "--experiment: contextual weights differ by segment, and then no arm is compared with"
                " another; `bandit-streams simulate` shows what it earns"
            )
        if record.versions[0].reward.kind == "value":
            raise click.UsageError(
                "--experiment: a rate and its lift are planned; the reward is of kind value"
            )
        n_arms = len(record.arms)
        better = next(i for i, arm in enumerate(record.arms) if arm.arm_id != record.control)
        name = record.arms[better].arm_id
        sign = -1.0 if record.versions[0].reward.lower_is_better else 1.0
        equal = Contestant("equal split", uniform, equal_split(record))
    changed = rate * (1.0 + sign * lift)
    if not 0.0 <= changed <= 1.0:
        raise click.UsageError(f"--lift: {rate:g} would become {changed:g}, which is no rate")
    rates = [changed if i == better else rate for i in range(n_arms)]
    if length < DAY_HOURS:
        raise click.UsageError("--length: want at least a day")
    scenario = scenario_from_definition(
        {"name": "plan", "rates": rates, "units_per_period": traffic, "n_periods": length}
    )
    return _Question(scenario, contestant, equal, name)


def _show(
    question: _Question,
    found: dict[str, Detection],
    rate: float,
    lift: float,
    traffic: int,
    power: float,
    runs: int,
    seed: int,
) -> None:
    most = question.scenario.n_periods // DAY_HOURS
    changed = question.scenario.rates[0]
    better = changed[np.argmax(np.abs(changed - rate))]
    console = wide_console()
    table = Table(
        title=f"{question.scenario.n_arms} arms at {rate:.3g}, {escape(question.better)} at {better:.3g}"
        f" ({lift:+.0%} in effect), {traffic:,} units an hour; {runs} runs, seed {seed}",
        title_justify="left",
    )
    table.add_column("way to decide", no_wrap=True)
    for name in (f"days, {power:.0%} of runs", "95% interval", "days, half of runs", f"found in {most} days"):
        table.add_column(name, justify="right")
    for way, each in found.items():
        table.add_row(escape(way), *detection_cells(each, most))
    console.print(table)
    way, first = next(iter(found.items()))
    if np.isinf(first.days):
        console.print(
            f"{way} does not name the better arm within {most} days in {power:.0%} of the runs:"
            " wait longer (--length), send more traffic, look for a larger effect, or leave more traffic to"
            " the other arms (top_two, uniform): policies that earn soon know little of the losers.",
            soft_wrap=True,
        )
