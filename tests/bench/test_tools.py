"""Every tool of the bench at a tiny size: it fails on wrong counts or a crash, never on time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.site import Site, arithmetic

ROOT = Path(__file__).parents[2]


def rows(*arguments: str) -> list[dict[str, Any]]:
    """What a tool prints with ``--json``."""
    command = [sys.executable, "-m", *arguments, "--json"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_scaling(tmp_path: Path) -> None:
    plot = tmp_path / "scaling.png"
    sizes = ["--exposures", "3000", "--points", "2", "--dimensions", "workers,hot_share"]
    found = rows("bench.scaling", *sizes, "--plot", str(plot))
    assert [(row["dimension"], row["value"]) for row in found] == [
        ("hot_share", 0.0),
        ("hot_share", 0.1),
        ("workers", 1),
        ("workers", 2),
    ]
    assert all(row["exact"] and row["cpu_us_per_event"] > 0 for row in found)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_latency() -> None:
    sizes = ["--max-rate", "1000", "--loads", "0.5", "--seconds", "2", "--units", "200"]
    counts, edge, *decide = rows("bench.latency", *sizes, "--edge-experiments", "5", "--boundaries", "2")
    assert counts["part"] == "counts"
    assert counts["exact"]
    assert counts["trials"] > 0
    assert 0 < counts["p50_ms"] <= counts["p99_ms"] <= counts["max_ms"]
    assert edge["part"] == "edge"
    assert edge["exact"]
    assert 0 < edge["first_ms"] <= edge["p50_ms"] <= edge["max_ms"]
    assert len(decide) == 4
    assert all(row["decide_ns"] > 0 and row["decide_in_page_ns"] > 0 for row in decide)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_recompute() -> None:
    (found,) = rows("bench.recompute", "--experiments", "12", "--hours", "5", "--exposures", "3000")
    assert found["exact"]
    assert found["experiments"] == 12
    assert 0 <= found["first_table_s"] <= found["last_table_s"]


def test_allocator() -> None:
    (found,) = rows("bench.allocator", "--experiments", "20", "--arms", "3", "--hours", "10")
    assert found["recompute_s"] > 0
    assert found["peak_mib"] >= found["memory_mib"]


def test_restore() -> None:
    (found,) = rows("bench.restore", "--units", "3000", "--batch", "500", "--repeat", "1")
    assert found["swept_journal_bytes_per_unit"] > found["unit_bytes"] > 0
    assert found["rebuild_units_per_s"] > 0


def test_a_site_on_paper() -> None:
    found = {
        "events_per_s": 10_000,
        "state_bytes_per_event": 50.0,
        "source_disk_bytes_per_event": 100.0,
        "journal_bytes_per_event": 160.0,
        "journal_disk_bytes_per_event": 40.0,
    }
    site = Site(
        100_000, busy=0.5, replicas=3, standbys=1, kept_hours=10, retention_hours=24, batch_records=1_000
    )
    assert {line.what: line.figure for line in arithmetic(found, site)} == pytest.approx(
        {
            "workers, a core each": 20,
            "partitions": 64,
            "sources": 10.0,
            "journal, batches": 4.0,
            "state": 180.0,  # 100,000 x 36,000 s x 50 B
            "state a worker": 9.0,
            "journal, sweeps": 6.5536,  # 25 steps/s of a MiB, of which zstd leaves a quarter
            "a sweep of all state": 7.629,  # 180 GB at 6.55 MB/s
            "broker writes": 61.661,
            "broker reads": 20.554,
            "network a worker": 1.555,
            "source disk": 2592.0,  # 10 MB/s x 86,400 s x 3
            "journal disk": 1739.2,  # 3 x 2 x (180 GB + 4 MB/s x 27,466 s)
        },
        rel=1e-3,
    )
