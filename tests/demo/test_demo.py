"""The demo itself, with a real Kafka and a real worker process."""

import asyncio
import functools
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from rich.console import Console

from bandit_core.policies import POLICIES
from streams.config import Settings
from streams.demo.installation import Installation, demo_settings
from streams.demo.living_shop import run_shop
from streams.demo.openbandit import load_logged_events, replay_experiment
from streams.demo.part import take_stock
from streams.demo.progress import Narrator
from streams.demo.publisher import Publisher
from streams.demo.run import DemoOptions, run_demo
from streams.embedded import Broker
from streams.errors import ConfigError
from streams.topics import create_topics

pytestmark = pytest.mark.integration

DATA = Path(__file__).parents[2] / "data" / "open_bandit_men_random.csv.gz"
SHOP_PREFIX = "demo-test-shop-"


def first_rows(folder: Path, n: int, *more: str) -> Path:
    lines = gzip.decompress(DATA.read_bytes()).decode().splitlines()[: n + 1]
    path = folder / "rows.csv.gz"
    path.write_bytes(gzip.compress("\n".join([*lines, *more, ""]).encode()))
    return path


def run_command(broker: Broker, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from streams.cli import main; sys.exit(main())",
            "demo",
            *arguments,
        ],
        env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


async def topics(broker: Broker) -> list[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        return list(await admin.list_topics())
    finally:
        await admin.close()


def summary_of(output: str) -> dict[str, Any]:
    last = output.splitlines()[-1]
    assert last.startswith("summary: ")
    figures: dict[str, Any] = json.loads(last.removeprefix("summary: "))
    return figures


def test_replay_of_the_first_rows_counts_every_row_and_says_so(broker: Broker, tmp_path: Path) -> None:
    rows = first_rows(tmp_path, 500, "no impression at all", "2019-11-24 07:00:00+00:00,2,1,7,0.1,a,b,c,d")
    done = run_command(broker, "--part", "replay", "--input", str(rows), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = summary_of(done.stdout)
    lines = gzip.decompress(rows.read_bytes()).decode().splitlines()[1:501]
    clicks = sum(line.split(",")[3] == "1" for line in lines)
    hours = (int(lines[-1][11:13]) - int(lines[0][11:13])) % 24 + 1  # the first 500 rows are of one day
    assert lines[0][:10] == lines[-1][:10]
    del figures["seconds"], figures["parts"]
    assert figures == {
        "events": 502 + clicks,
        "exposures": 502,
        "conversions": clicks,
        "trials": 500,
        "successes": clicks,
        "duplicates": 0,
        "dead_letters": 2,
        "allocations": hours,
        "counts_equal_oracle": True,
    }
    assert "What may be concluded" in done.stdout
    assert "invalid_field" in done.stdout
    assert not [name for name in asyncio.run(topics(broker)) if name.startswith("demo-")]


def test_the_log_is_replayed_with_each_policy_in_one_run(broker: Broker, tmp_path: Path) -> None:
    rows = first_rows(tmp_path, 400)
    done = run_command(
        broker, "--part", "replay", "--policies", "all", "--input", str(rows), "--out", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = summary_of(done.stdout)
    assert figures["counts_equal_oracle"] is True
    assert figures["exposures"] == figures["trials"] == 400 * len(POLICIES)
    table = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.split()}
    lines = gzip.decompress(rows.read_bytes()).decode().splitlines()[1:]
    clicks = sum(line.split(",")[3] == "1" for line in lines)
    assert set(POLICIES) <= set(table)
    # The log's own policy is the uniform one: its estimate is the plain click rate, at no loss of rows.
    assert table["uniform"][0] == f"{clicks / 400:.2%}"
    assert table["uniform"][-3] == "400"
    for name in POLICIES:
        assert table[name][0].endswith("%"), name


def test_a_policy_that_is_none_is_refused(broker: Broker) -> None:
    done = run_command(broker, "--part", "replay", "--policies", "thompson,greedy")
    assert done.returncode == 2
    assert "greedy: not a policy; there are contextual" in done.stderr


def test_an_input_that_is_none_is_refused_before_anything_is_started(broker: Broker, tmp_path: Path) -> None:
    done = run_command(broker, "--part", "replay", "--input", str(tmp_path / "none.csv"))
    assert done.returncode == 65
    assert "cannot be read" in done.stderr
    assert "what to do: " in done.stderr
    assert done.stdout == ""


def test_missing_packages_are_named_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("streams.demo.run.find_spec", {}.get)
    options = DemoOptions(
        parts=("replay",), input_file=DATA, bootstrap=None, days=1, seed=1, out_dir=tmp_path / "out"
    )
    with pytest.raises(ConfigError, match="duckdb and matplotlib"):
        run_demo(Settings(), options, Narrator())
    assert not (tmp_path / "out").exists()


async def test_an_event_that_was_never_counted_is_found(
    broker: Broker, tmp_path: Path, topic_prefix: str
) -> None:
    settings = demo_settings(
        Settings(), bootstrap_servers=broker.bootstrap_servers, prefix=topic_prefix, data_dir=tmp_path
    )
    await create_topics(settings)
    events = load_logged_events(first_rows(tmp_path, 3))
    record = replay_experiment(events, 0)
    narrator = Narrator(Console(file=io.StringIO()))
    async with Publisher(settings) as publisher:
        await publisher.publish("exposures", events.exposures)
        stock = await take_stock(settings, [record], narrator)
    assert len(stock.differences) == 6, "three trials in each of the two views"
    assert all("counted nothing, oracle 1 trials" in line for line in stock.differences)
    assert not stock.summary([record], 1.0).counts_equal_oracle


@pytest.mark.slow
async def test_the_shop_learns_the_better_arms_through_kafka_alone(broker: Broker, tmp_path: Path) -> None:
    text = io.StringIO()
    settings = demo_settings(
        Settings(),
        bootstrap_servers=broker.bootstrap_servers,
        prefix=SHOP_PREFIX,
        data_dir=tmp_path / "data",
    )
    make = functools.partial(Installation, settings, log_file=tmp_path / "worker.log", remove_topics=True)
    narrator = Narrator(Console(file=text, width=120, highlight=False))
    picture = tmp_path / "shop.png"
    summary = await run_shop(make, narrator, days=2, seed=7, picture=picture, visits_per_hour=60)
    assert summary.counts_equal_oracle, text.getvalue()
    assert summary.duplicates > 0
    assert summary.dead_letters > 0
    assert summary.events == summary.exposures + summary.conversions
    assert 0 < summary.successes < summary.trials <= summary.exposures
    assert summary.allocations >= 3 * 48
    output = text.getvalue()
    assert "had trouble" not in output, output
    assert "late" in output
    assert "undecodable" in output
    assert picture.stat().st_size > 10_000
    assert not (tmp_path / "data").exists()
    assert not [name for name in await topics(broker) if name.startswith(SHOP_PREFIX)]
