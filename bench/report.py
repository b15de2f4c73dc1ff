"""What every bench says of itself: progress, tables, the machine."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.contestant import can_pin


def say(line: str) -> None:
    """Say what goes on, beside the result."""
    print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Markdown table; a row with ``error`` has the reason in place of its figures."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [cell(row.get(name)) for name in columns]
        if "error" in row:
            reason = " ".join(row["error"].split())[:200].replace("|", "/")
            n_known = max(1, sum(name in row for name in columns))
            cells = [*cells[:n_known], f"failed: {reason}", *["–"] * (len(columns) - n_known - 1)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(value: object) -> str:
    """Write a figure as a table has it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def machine() -> str:
    """Cores, system and versions, for the head of the table."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    packages = ", ".join(f"{name} {version(name)}" for name in ("aiokafka", "msgspec", "rocksdict"))
    return (
        f"{os.cpu_count()} x {models[0] if models else platform.processor()}, {platform.system()}, "
        f"Python {platform.python_version()}, {packages}; "
        f"{'broker and contestant each on a core of its own' if can_pin() else 'nothing pinned'}"
    )
