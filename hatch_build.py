"""Builds the compiled kernel of the join, ``streams/join/_kernel.pyx``, where a C compiler is there for it.

The kernel is optional: without a compiler, or with ``BANDIT_BUILD_KERNEL=never``, the wheel is a pure one and
the join runs in Python alone. ``BANDIT_BUILD_KERNEL=always`` makes a kernel that cannot be built an error.
``python hatch_build.py`` builds it in place.
"""

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("streams", "join", "_kernel.pyx")
FLAGS = ["-O2", "-g0"] if os.name == "posix" else []


class KernelHook(BuildHookInterface[Any]):
    """Hatchling's hook: the wheel gets the kernel and the platform's tag, if the kernel can be built."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's
        """Build the kernel into the tree, and name it in the wheel."""
        if self.target_name != "wheel":
            return
        built = build(Path(self.root))
        if built is not None:
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["force_include"][str(built)] = str(SOURCE.with_name(built.name))


def build(root: Path) -> Path | None:
    """Build the kernel into the tree at ``root``; None, and a line that says why, if there is none."""
    wanted = os.environ.get("BANDIT_BUILD_KERNEL", "auto")
    if wanted == "never":
        return None
    try:
        return _compile(root)
    except (Exception, SystemExit) as error:
        if wanted == "always":
            raise
        print(
            f"the compiled kernel was not built ({type(error).__name__}: {error}); the join runs in Python "
            "alone, with the same results, some four times slower; it needs a C compiler and Python.h",
            file=sys.stderr,
        )
        return None


def _compile(root: Path) -> Path:
    from Cython.Build import cythonize  # noqa: PLC0415 - without them a pure wheel can be built still
    from setuptools import Distribution, Extension  # noqa: PLC0415 - likewise

    scratch = root / "build" / "kernel"
    here = Path.cwd()
    os.chdir(root)  # names in the C file are relative, so that the same source gives the same bytes
    try:
        module = ".".join(SOURCE.with_suffix("").parts)
        extensions = cythonize(
            [Extension(module, [str(SOURCE)], extra_compile_args=FLAGS)], build_dir=str(scratch), quiet=True
        )
        distribution = Distribution({"name": "bandit-streams", "ext_modules": extensions})
        command = distribution.get_command_obj("build_ext")
        command.inplace, command.build_temp = True, str(scratch)
        command.ensure_finalized()
        command.run()
        return root / command.get_ext_fullpath(module)
    finally:
        os.chdir(here)


if __name__ == "__main__":
    path = build(Path(__file__).parent.resolve())
    print(f"compiled kernel: {path.name if path else 'none'}")
