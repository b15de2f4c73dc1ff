"""``bandit-streams demo``: the product on real input and on a simulated shop."""

import logging
from pathlib import Path
from typing import Literal

import click

from bandit_core.policies import POLICIES
from streams.commands import Invocation, pass_settings
from streams.config import Settings

_DEFAULT_INPUT = Path(__file__).parents[2] / "data" / "open_bandit_men_random.csv.gz"


@click.command()
@click.option(
    "--part",
    type=click.Choice(["replay", "shop"]),
    help="Only this part: 'replay' of logged impressions and clicks, or the living 'shop'.  [default: both]",
)
@click.option(
    "--input",
    "input_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=_DEFAULT_INPUT,
    show_default="data/open_bandit_men_random.csv.gz",
    help="CSV file of impressions for the replay, gzipped or plain.",
)
@click.option(
    "--policies",
    default="thompson",
    show_default=True,
    help="Policies to replay the file with, separated by commas, or 'all'.",
)
@click.option(
    "--bootstrap",
    help="Address of a running Kafka.  [default: KAFKA_BOOTSTRAP_SERVERS, else Docker, else one is started]",
)
@click.option("--days", type=click.IntRange(1, 60), default=3, show_default=True, help="Days to simulate.")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Seed of chance.")
@click.option(
    "--out",
    "out_dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the picture and the workers' logs.",
)
@pass_settings
def command(
    settings: Settings,
    part: Literal["replay", "shop"] | None,
    input_file: Path,
    policies: str,
    bootstrap: str | None,
    days: int,
    seed: int,
    out_dir: Path,
) -> None:
    """Run the product on real input and on a simulated shop, and check its counts.

    Part 1 replays a week of real impressions and clicks; part 2 simulates a shop whose edges read the
    allocations and emit events. Both go through a real Kafka and a worker process. The last line is `summary:
    {...}`; the exit status is 0 if all counts equal those of an independent program.
    """
    algorithms = tuple(sorted(POLICIES)) if policies == "all" else tuple(dict.fromkeys(policies.split(",")))
    unknown = [name for name in algorithms if name not in POLICIES]
    if unknown:
        raise click.BadParameter(
            f"{', '.join(unknown)}: not a policy; there are {', '.join(sorted(POLICIES))}",
            param_hint="--policies",
        )
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it reports what it then retries as errors
    from streams.demo.progress import Narrator  # noqa: PLC0415 - slow imports, after the options are checked
    from streams.demo.run import DemoOptions, run_demo  # noqa: PLC0415

    context = click.get_current_context()
    options = DemoOptions(
        parts=("replay", "shop") if part is None else (part,),
        input_file=input_file,
        bootstrap=bootstrap,
        days=days,
        seed=seed,
        out_dir=out_dir,
        config=context.ensure_object(Invocation).config,
        algorithms=algorithms,
    )
    context.exit(0 if run_demo(settings, options, Narrator()) else 1)
