"""``bandit-streams simulate``: policies, or a whole definition, in scenarios whose truth is known."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bandit_core.league import CHUNK_RUNS, LeagueRow, summary
from bandit_core.policies import POLICIES, policy_from_definition
from bandit_core.simulator import PENDING_AS, Scenario
from streams.errors import ConfigError
from streams.experiments.reader import read_duration_ms
from streams.experiments.validation import parse_definition
from streams.simulation.definition import equal_split, record_of
from streams.simulation.files import SHIPPED, described, load_scenario, read_text
from streams.simulation.report import (
    COLUMNS,
    Course,
    cells,
    check_picture,
    course_of,
    draw,
    plain,
    sparklines,
)
from streams.simulation.runner import Contestant, run_figures, usable_processes

_DEFAULT_POLICIES = ("uniform", "thompson", "epsilon_greedy", "ucb1_tuned")


@dataclass(frozen=True, slots=True)
class _Result:
    rows: list[LeagueRow]
    courses: list[Course]


class Numbers(click.ParamType):
    """Numbers with commas between them, such as ``0.05,0.055``."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """Read the numbers."""
        if isinstance(value, list):
            return value
        try:
            return [float(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not numbers with commas between them, such as 0.05,0.055", param, ctx)


class Hours(click.ParamType):
    """A duration in whole hours, such as ``14d`` or ``36h``."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the duration."""
        if isinstance(value, int):
            return value
        try:
            hours, rest = divmod(read_duration_ms(value), 3_600_000)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if rest or hours < 1:
            self.fail(f"{value!r} is not a whole number of hours, such as 14d or 36h", param, ctx)
        return hours


runs_option = click.option(
    "--runs", type=click.IntRange(2, 100_000), default=100, show_default=True, help="Runs of each contestant."
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=7, show_default=True, help="Seed of all chance."
)
processes_option = click.option(
    "--processes",
    type=click.IntRange(1, 256),
    help="Parallel processes; no figure depends on it.  [default: one a core]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")


def wide_console() -> Console:
    """Make a console for tables: as wide as they need where standard output is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def progress(console: Console, text: str, total: int) -> Progress:
    """Make a bar with one task; nothing is shown where standard error is no terminal."""
    bar = Progress(
        TextColumn(text),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    bar.add_task(text, total=total)
    return bar


@click.command()
@click.option(
    "--scenario",
    "names",
    multiple=True,
    help="Scenario file (YAML or JSON), or the name of a shipped one; may be repeated; `all`: every shipped"
    " one.  [default: one-better]",
)
@click.option("--list", "list_only", is_flag=True, help="List the shipped scenarios and end.")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice([*sorted(POLICIES), "all"]),
    metavar="NAME",
    help="Policy to simulate; may be repeated; `all`: every one."
    f"  [default: {', '.join(_DEFAULT_POLICIES)}; with --experiment: the same as an equal split]",
)
@click.option(
    "--experiment",
    "experiments",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Definition file: simulate what it says, by the allocator's own computation; may be repeated.",
)
@click.option("--rates", type=Numbers(), help="Each arm's rate instead of the scenario's: 0.05,0.055")
@click.option("--traffic", type=click.IntRange(1), help="Units an hour instead of the scenario's.")
@click.option("--length", type=Hours(), help="How long instead of the scenario's: 14d, 36h.")
@click.option(
    "--pending-as",
    type=click.Choice(PENDING_AS),
    default="estimated",
    show_default=True,
    help="What pending trials count as for --policy, where the scenario has delays.",
)
@runs_option
@seed_option
@processes_option
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("simulation.png"),
    show_default=True,
    help="Picture to write: .png, .svg or .html.",
)
@click.option("--no-plot", is_flag=True, help="Write no picture.")
@json_option
def command(
    names: tuple[str, ...],
    list_only: bool,
    policies: tuple[str, ...],
    experiments: tuple[Path, ...],
    rates: list[float] | None,
    traffic: int | None,
    length: int | None,
    pending_as: str,
    runs: int,
    seed: int,
    processes: int | None,
    plot: Path,
    no_plot: bool,
    as_json: bool,
) -> None:
    """Simulate policies, or a definition before it goes live, where the truth is known.

    Every hour units get arms by the shares, and the shares follow from what is known by then. Figures are
    means over runs with their standard errors: regret (successes lost against always the best arm), share of
    the best arm, arms with under half a percent of the traffic; and of daily reports: runs with a false
    winner, and coverage (all true effects inside all intervals at all looks).
    """
    if list_only:
        for name, text in described():
            click.echo(f"{name:<16} {text}")
        return
    chosen = SHIPPED if "all" in names else names or ("one-better",)
    scenarios = [
        load_scenario(name, rates=rates, units_per_period=traffic, n_periods=length) for name in chosen
    ]
    picture = _picture(plot, no_plot)
    contestants = _contestants(experiments, policies, pending_as)
    result = _run(scenarios, contestants, runs, seed, processes or usable_processes())
    if picture is not None:
        draw(result.courses, result.rows, picture)
    drawn = None if picture is None else str(picture)
    if as_json:
        document = {"seed": seed, "rows": [asdict(row) for row in result.rows], "plot": drawn}
        click.echo(json.dumps(plain(document), ensure_ascii=False, allow_nan=False))
        return
    _show(result, runs, seed, drawn)


def _contestants(experiments: Sequence[Path], policies: Sequence[str], pending_as: str) -> list[Contestant]:
    names = list(policies) or ([] if experiments else list(_DEFAULT_POLICIES))
    if "all" in names:
        names = list(POLICIES)
    found = [definition_contestant(file) for file in experiments]
    if len({each.label for each in found}) < len(found):
        found = [
            replace(each, label=f"{each.label} ({file})")
            for each, file in zip(found, experiments, strict=True)
        ]
    bare = [Contestant(name, policy_from_definition(name), pending_as=pending_as) for name in names]
    if found and not bare and (first := found[0].record) is not None:
        bare = [Contestant("equal split", found[0].policy, equal_split(first))]
    return [*found, *bare]


def definition_contestant(file: Path) -> Contestant:
    """Read the one definition of a file."""
    record = record_of(parse_definition(read_text(file), str(file)))
    return Contestant(record.experiment_id, policy_from_definition("uniform"), record)


def _entries(
    scenarios: Sequence[Scenario], contestants: Sequence[Contestant]
) -> list[tuple[Scenario, Contestant]]:
    """Every contestant in every scenario, but contextual only where there are segments to learn by.

    Raises
    ------
    ConfigError
        If a bare policy meets a scenario of values.
    """
    for scenario in scenarios:
        if scenario.mean_values and any(contestant.record is None for contestant in contestants):
            raise ConfigError(
                "mean_values: a bare policy learns rates, not values",
                where=f"scenario {scenario.name}",
                action="use --experiment with a definition of kind value, without --policy",
            )
    return [
        (scenario, contestant)
        for scenario in scenarios
        for contestant in contestants
        if len(contestants) == 1 or scenario.segments or contestant.policy.name != "contextual"
    ]


def _run(
    scenarios: Sequence[Scenario], contestants: Sequence[Contestant], runs: int, seed: int, processes: int
) -> _Result:
    entries = _entries(scenarios, contestants)
    console = Console(stderr=True)
    with progress(console, "simulating", len(entries) * -(-runs // CHUNK_RUNS)) as bar:
        found = run_figures(
            entries,
            n_runs=runs,
            seed=seed,
            processes=processes,
            done=lambda: bar.advance(bar.task_ids[0]),
        )
    rows, courses = [], []
    for (scenario, contestant), figures in zip(entries, found, strict=True):
        rows.append(summary(figures, scenario=scenario.name, policy=contestant.label))
        courses.append(course_of(figures, scenario.name, contestant.label))
    return _Result(rows, courses)


def _picture(plot: Path, no_plot: bool) -> Path | None:
    """Where to draw, if anywhere; without matplotlib only what was asked for by name is an error."""
    given = click.get_current_context().get_parameter_source("plot")
    by_default = given is click.core.ParameterSource.DEFAULT
    if no_plot or (by_default and find_spec("matplotlib") is None):
        return None
    check_picture(plot)
    return plot


def _show(result: _Result, runs: int, seed: int, drawn: str | None) -> None:
    console = wide_console()
    is_utf8 = (console.encoding or "").lower().startswith("utf")
    for scenario in dict.fromkeys(row.scenario for row in result.rows):
        table = Table(title=f"{escape(scenario)}: {runs} runs, seed {seed}", title_justify="left")
        for index, name in enumerate(COLUMNS):
            table.add_column(name, justify="right" if index else "left", no_wrap=True)
        for row in result.rows:
            if row.scenario == scenario:
                table.add_row(*map(escape, cells(row)))
        console.print(table)
        console.print("share of the best arm, from the first hour to the last:")
        for line in sparklines([c for c in result.courses if c.scenario == scenario], is_utf8=is_utf8):
            console.print(f"  {escape(line)}", soft_wrap=True)
        console.print()
    if drawn is None:
        console.print("no picture was drawn")
    else:
        console.print(f"picture: {escape(drawn)}", soft_wrap=True)
