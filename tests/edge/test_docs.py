"""The code of docs/edge.md and of examples/, run as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from streams.config import Settings
from streams.edge import REASONS, EdgeClient
from streams.edge.table import DecisionTable
from streams.embedded import Broker
from streams.events import decode_conversion, decode_exposure
from streams.experiments.changes import apply_definition
from streams.experiments.store import ExperimentStore
from streams.experiments.validation import parse_definition
from streams.log_reader import LogReader
from streams.topics import create_topics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "edge.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def run_python(code: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def environment_for(broker: Broker, prefix: str) -> dict[str, str]:
    return {
        "BANDIT_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "BANDIT_TOPIC_PREFIX": prefix,
        "BANDIT_REPLICATION_FACTOR": "1",
        "BANDIT_MIN_INSYNC_REPLICAS": "1",
        "BANDIT_PARTITIONS": "2",
        "BANDIT_COUNTS_PARTITIONS": "1",
    }


async def make_topics(broker: Broker, prefix: str) -> Settings:
    settings = Settings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=prefix,
        replication_factor=1,
        min_insync_replicas=1,
        partitions=2,
        counts_partitions=1,
    )
    await create_topics(settings)
    return settings


def test_the_recipe_on_the_page_gives_the_golden_vectors() -> None:
    (recipe,) = [block for block in BLOCKS if "sha256" in block]
    done = run_python(recipe)
    assert done.returncode == 0, done.stderr
    broken = recipe.replace(">> 12", ">> 11")
    assert run_python(broken).returncode != 0, "the page's own check cannot fail"


def test_every_reason_and_call_is_on_the_page() -> None:
    for reason in REASONS:
        assert f"| `{reason}` |" in PAGE
    calls = [name for name in vars(EdgeClient) if not name.startswith("_")]
    for name in calls:
        assert re.search(rf"^\| `(await )?{name}\(", PAGE, re.MULTILINE), name
    assert DecisionTable.__module__.replace(".", "/") == "streams/edge/table"
    for path in re.findall(r"`((?:tests|bench|examples)/[\w./]+)`", PAGE):
        assert (ROOT / path).is_file(), path


@pytest.mark.integration
async def test_the_first_block_of_the_page_prints_what_it_says(broker: Broker, topic_prefix: str) -> None:
    settings = await make_topics(broker, topic_prefix)
    done = run_python(BLOCKS[0], environment_for(broker, topic_prefix))
    assert done.returncode == 0, done.stderr
    printed = done.stdout.strip()
    assert printed == "None 1.0 default:unknown_experiment"
    assert f"`{printed}`" in PAGE
    async with LogReader(settings) as reader:
        assert len([r async for r in reader.read(settings.topic("conversions"))]) == 1


@pytest.mark.integration
async def test_the_example_producer_writes_valid_events(broker: Broker, topic_prefix: str) -> None:
    settings = await make_topics(broker, topic_prefix)
    code = (ROOT / "examples" / "producer.py").read_text(encoding="utf-8")
    done = run_python(code, environment_for(broker, topic_prefix))
    assert done.returncode == 0, done.stderr
    async with LogReader(settings) as reader:
        exposures = [decode_exposure(r.value or b"") async for r in reader.read(settings.topic("exposures"))]
        orders = [decode_conversion(r.value or b"") async for r in reader.read(settings.topic("conversions"))]
    assert done.stdout == f"100 visitors, {len(orders)} orders\n"
    definition = parse_definition((ROOT / "examples" / "checkout-button.yaml").read_text(encoding="utf-8"))
    assert {e.unit_id for e in exposures} == {f"visitor-{i}" for i in range(100)}
    assert {e.experiment_id for e in exposures} == {definition.experiment_id}
    assert {e.arm_id for e in exposures} <= {arm.arm_id for arm in definition.arms}
    assert {o.metric for o in orders} <= {definition.counting.reward.metric}


@pytest.mark.integration
async def test_the_example_service_decides_and_reports(
    broker: Broker, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiohttp.test_utils import TestClient, TestServer

    settings = await make_topics(broker, topic_prefix)
    for name, value in environment_for(broker, topic_prefix).items():
        monkeypatch.setenv(name, value)
    definition = parse_definition((ROOT / "examples" / "checkout-button.yaml").read_text(encoding="utf-8"))
    async with ExperimentStore(settings) as store:
        await store.write(apply_definition(definition, None, now_ms=1, lead_ms=1).record)
    names: dict[str, object] = {"__name__": "edge_service"}
    exec(compile((ROOT / "examples" / "edge_service.py").read_text(), "edge_service.py", "exec"), names)
    make_app = names["make_app"]
    assert callable(make_app)
    async with TestClient(TestServer(make_app())) as client:
        answer = await (await client.get("/button", params={"visitor": "v-1", "country": "ch"})).json()
        assert answer == {"arm": "grey", "reason": "default:missing_allocation"}
        assert (await client.post("/order", params={"visitor": "v-1"})).status == 200
        assert await (await client.get("/health")).json() == {"allocation_age_ms": {}, "events_lost": 0}
    async with LogReader(settings) as reader:
        (shown,) = [decode_exposure(r.value or b"") async for r in reader.read(settings.topic("exposures"))]
        (order,) = [
            decode_conversion(r.value or b"") async for r in reader.read(settings.topic("conversions"))
        ]
    assert (shown.unit_id, shown.arm_id, order.unit_id, order.metric) == ("v-1", "grey", "v-1", "order")
