"""What must hold of an installation: run in the tree and, by `make wheel-test`, against the built wheel."""

import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata, resources
from pathlib import Path

import pytest

from streams.join.kernel import KERNEL


@pytest.mark.parametrize("package", ["bandit_core", "streams"])
def test_package_is_importable_and_typed(package: str) -> None:
    assert resources.files(package).joinpath("py.typed").is_file()


def test_console_script_prints_its_help() -> None:
    script = Path(sys.executable).with_name("bandit-streams")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.mark.skipif(
    shutil.which("cc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="no C compiler, or no headers of Python: the kernel is not built",
)
def test_compiled_kernel_is_there() -> None:
    assert KERNEL is not None


def test_wheel_names_its_licence_and_python() -> None:
    meta = metadata.metadata("bandit-streams")
    assert meta["License-Expression"] == "Apache-2.0"
    assert meta["Requires-Python"] == ">=3.11"
