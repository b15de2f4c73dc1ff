"""Reads the sources and holds them to this repository's habits; every finding names file, line and way out.

What ruff and mypy cannot see: who may import whom, what the pure parts must not touch, how long things may
get, what the committed files must not contain. The rules are functions from a source to findings, so that the
second half of this file can show each of them failing.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

MAX_FUNCTION_LINES = 70  # without the docstring: explaining more must not cost
MAX_LINE_LENGTH = 110
MAX_MODULE_LINES = 500

PRAGMA = re.compile(r"\s+#\s*(noqa|type:\s*ignore)\b.*$")

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}

# Each part may import itself and the parts before it. A module that is in none of them is free.
LAYERS = ["bandit_core", "streams.join", "streams.state", "streams.agents", "streams.app"]
PURE = ("bandit_core", "streams.join")

PURE_IMPORTS = {
    "asyncio": "return what is to be done and let the caller do it",
    "time": "take the time as an argument",
    "random": "take a numpy.random.Generator as an argument",
    "secrets": "take a numpy.random.Generator as an argument",
    "os": "take the value as an argument",
    "sys": "take the value as an argument",
    "io": "take and return bytes",
    "pathlib": "take and return bytes",
    "socket": "take and return bytes",
    "subprocess": "leave processes to the callers",
    "threading": "leave concurrency to the callers",
    "multiprocessing": "leave concurrency to the callers",
    "concurrent": "leave concurrency to the callers",
    "logging": "return numbers or raise; the callers log",
    "faust": "leave Kafka to streams.agents",
    "aiokafka": "leave Kafka to streams.agents",
    "mode": "leave services to streams.app",
    "rocksdict": "leave storage to streams.state",
    "aiohttp": "leave the network to streams.web",
    "prometheus_client": "return numbers; streams.metrics exports them",
    "rich": "leave the terminal to streams.commands",
    "click": "leave the terminal to streams.commands",
}
PURE_CALLS = {
    "open": "take and return bytes",
    "print": "return it",
    "input": "take it as an argument",
    "now": "take the time as an argument",
    "utcnow": "take the time as an argument",
    "today": "take the time as an argument",
    "hash": "use streams.partitioning or hashlib: hash() is salted in every process",
}
NUMPY_RANDOM_TYPES = {"Generator", "SeedSequence", "BitGenerator", "PCG64", "Philox"}

# In two halves, so that this file does not contain what it looks for.
FORBIDDEN_TEXT = {
    r"\bpypi" + r"\.org|pythonhosted" + r"\.org": "name the package, not the registry's host",
    r"maven" + r"\.apache|maven" + r"\.org|repo1\." + r"maven": "name the artifact, not the registry's host",
    r"registry\.npm" + r"js": "name the package, not the registry's host",
    r"(?<![\w.$}])/(?:work|ro" + r"ot|home/\w+|Users/\w+)/": "use a path relative to the repository",
    r"DESIGN" + r"\.md": "point at ARCHITECTURE.md or docs/",
    r"\bTO" + r"DO\b|\bFIX" + r"ME\b": "do it, or leave it out",
}


class Source(NamedTuple):
    """A Python file: its path in the repository, its text and its tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def is_product(self) -> bool:
        return self.module.split(".")[0] in {"bandit_core", "streams"}

    @property
    def is_pure(self) -> bool:
        return belongs(self.module, PURE)


Finding = tuple[int, str]  # line, what is wrong and the way out
Rule = Callable[[Source], Iterator[Finding]]


def belongs(module: str, parts: tuple[str, ...] | list[str]) -> bool:
    return any(module == part or module.startswith(part + ".") for part in parts)


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Every imported module, ``from package import module`` included."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def import_direction(source: Source) -> Iterator[Finding]:
    layer = next((i for i, part in enumerate(LAYERS) if belongs(source.module, [part])), None)
    if layer is None:
        return
    for line, name in imports(source):
        for higher in LAYERS[layer + 1 :]:
            if belongs(name, [higher]):
                yield (
                    line,
                    (
                        f"{LAYERS[layer]} imports {name}; the direction is"
                        f" {' <- '.join(LAYERS)}: pass it in, or move what is shared down"
                    ),
                )
        if layer == 0 and belongs(name, ["streams"]):
            yield line, f"bandit_core imports {name}; it knows nothing of the pipeline: pass it in"


def pure_imports(source: Source) -> Iterator[Finding]:
    if source.is_pure:
        for line, name in imports(source):
            top = name.split(".")[0]
            if top in PURE_IMPORTS:
                yield line, f"pure code imports {top}; instead: {PURE_IMPORTS[top]}"


def pure_calls(source: Source) -> Iterator[Finding]:
    if not source.is_pure:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in PURE_CALLS:
                yield node.lineno, f"pure code calls {name}(); instead: {PURE_CALLS[name]}"
            if name == "default_rng" and not node.args and not node.keywords:
                yield node.lineno, "unseeded default_rng(); instead: take a Generator as an argument"
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield node.lineno, f"pure code is async; instead: {PURE_IMPORTS['asyncio']}"


def global_random(source: Source) -> Iterator[Finding]:
    if not source.is_product:
        return
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == "random"
            and isinstance(node.value.value, ast.Name)
            and node.value.value.id in {"np", "numpy"}
            and node.attr not in NUMPY_RANDOM_TYPES | {"default_rng"}
        ):
            yield node.lineno, f"numpy.random.{node.attr} is global; instead: a Generator as argument"


def function_length(source: Source) -> Iterator[Finding]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield (
                    node.lineno,
                    (
                        f"{node.name}() has {lines} lines without its docstring, more than"
                        f" {MAX_FUNCTION_LINES}; give the parts names"
                    ),
                )


def line_length(source: Source) -> Iterator[Finding]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        length = len(PRAGMA.sub("", line))  # as ruff measures: a directive cannot be broken
        if length > MAX_LINE_LENGTH:
            yield number, f"{length} characters, more than {MAX_LINE_LENGTH}; break the line"


def module_length(source: Source) -> Iterator[Finding]:
    lines = len(source.text.splitlines())
    if lines > MAX_MODULE_LINES:
        yield lines, f"{lines} lines, more than {MAX_MODULE_LINES}; is it still one thing? Split it"


def module_name(source: Source) -> Iterator[Finding]:
    for part in source.module.split("."):
        if part in FORBIDDEN_NAMES:
            yield 1, f"{part} says nothing; name the module after the noun it is about"


def module_docstring(source: Source) -> Iterator[Finding]:
    public = not any(part.startswith("_") for part in source.module.split("."))
    if source.is_product and public and not ast.get_docstring(source.tree):
        yield 1, "no docstring; say what it is, why this way, what it costs"


def declared_names(source: Source) -> Iterator[Finding]:
    """Where ``__all__`` is declared, it is every public function and class, and nothing that is not there."""
    declaration = next(
        (
            node
            for node in source.tree.body
            if isinstance(node, ast.Assign)
            and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["__all__"]
        ),
        None,
    )
    if declaration is None:
        return
    declared = {str(name) for name in ast.literal_eval(declaration.value)}
    public, bound = set(), set()
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
            if not node.name.startswith("_"):
                public.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        else:
            bound |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    for name in sorted(public - declared):
        yield (
            declaration.lineno,
            f"{name} is public but not in __all__; add it, or begin its name with an underscore",
        )
    for name in sorted(declared - bound):
        yield declaration.lineno, f"__all__ names {name}, which the module does not have; remove it"


def product_habits(source: Source) -> Iterator[Finding]:
    if not source.is_product:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert vanishes under -O; raise an error that says what to do"
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node):
            yield node.lineno, "NotImplementedError; write it, use an abstract method, or leave it out"
        if isinstance(node, ast.ExceptHandler) and all(isinstance(each, ast.Pass) for each in node.body):
            yield node.lineno, "an error vanishes; use contextlib.suppress with a narrow type"


def type_ignores(source: Source) -> Iterator[Finding]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        if re.search(r"#\s*type:\s*ignore\[[\w, -]+\]\s*$", line):
            yield number, "type: ignore without a reason; say why behind it, or repair the type"


def forbidden_text(path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, instead in FORBIDDEN_TEXT.items():
            if found := re.search(pattern, line):
                yield f"{path}:{number}: {found[0]!r}; {instead}"


RULES: list[Rule] = [
    import_direction,
    pure_imports,
    pure_calls,
    global_random,
    function_length,
    line_length,
    module_length,
    module_name,
    module_docstring,
    declared_names,
    product_habits,
    type_ignores,
]


@cache
def committed() -> list[str]:
    """Files of the repository: tracked ones, and new ones that are not ignored."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(path for path in set(done.stdout.split("\0")) if path and (ROOT / path).is_file())


@cache
def sources() -> list[Source]:
    found = []
    for path in committed():
        if path.endswith(".py"):
            text = (ROOT / path).read_text(encoding="utf-8")
            found.append(Source(path, text, ast.parse(text, path)))
    return found


def located(rule: Rule, source: Source) -> list[str]:
    return [f"{source.path}:{line}: {message}" for line, message in sorted(rule(source))]


def require_none(findings: list[str]) -> None:
    if findings:
        pytest.fail(f"{len(findings)} findings:\n" + "\n".join(findings), pytrace=False)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__name__))
def test_sources(rule: Rule) -> None:
    assert len(sources()) > 10
    require_none([finding for source in sources() for finding in located(rule, source)])


def test_committed_text() -> None:
    findings: list[str] = []
    for path in committed():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # data and pictures
        findings += forbidden_text(path, text)
    require_none(findings)


def source(text: str, path: str = "bandit_core/thing.py") -> Source:
    return Source(path, text, ast.parse(text))


STATE = "streams/state/thing.py"


@pytest.mark.parametrize(
    ("rule", "text", "path", "said"),
    [
        (import_direction, "import streams.events", "bandit_core/a.py", "bandit_core imports streams.events"),
        (
            import_direction,
            "from streams import state",
            "streams/join/a.py",
            "streams.join imports streams.state",
        ),
        (import_direction, "from streams.agents.x import y", STATE, "streams.state imports streams.agents.x"),
        (
            import_direction,
            "def f():\n    import streams.app",
            "streams/agents/a.py",
            "a.py:2: streams.agents imports",
        ),
        (pure_imports, "import time", "streams/join/a.py", "instead: take the time as an argument"),
        (pure_imports, "from asyncio import sleep", "bandit_core/a.py", "pure code imports asyncio"),
        (pure_calls, "x = datetime.now(UTC)", "bandit_core/a.py", "pure code calls now()"),
        (pure_calls, "x = 1\nopen('f')", "streams/join/a.py", "a.py:2: pure code calls open()"),
        (pure_calls, "rng = np.random.default_rng()", "bandit_core/a.py", "unseeded default_rng()"),
        (pure_calls, "async def f(): ...", "streams/join/__init__.py", "pure code is async"),
        (global_random, "x = np.random.beta(1, 2)", STATE, "numpy.random.beta is global"),
        (function_length, "def f():\n" + "    x = 1\n" * 70, STATE, "f() has 71 lines"),
        (line_length, "x = 1\n# " + "x" * 109, STATE, "thing.py:2: 111 characters"),
        (module_length, "x = 1\n" * 501, STATE, "501 lines"),
        (module_name, "", "streams/state/helpers.py", "helpers says nothing"),
        (module_docstring, "x = 1", STATE, "no docstring"),
        (
            declared_names,
            "__all__ = ['a']\ndef a(): ...\ndef b(): ...",
            STATE,
            "b is public but not in __all__",
        ),
        (declared_names, "x = 1\n__all__ = ['a']", STATE, "thing.py:2: __all__ names a"),
        (product_habits, "assert x", STATE, "assert vanishes"),
        (product_habits, "raise NotImplementedError", STATE, "NotImplementedError"),
        (product_habits, "try:\n    x\nexcept OSError:\n    pass", STATE, "thing.py:3: an error vanishes"),
        (type_ignores, "x = 1  # type: " + "ignore[misc]", STATE, "without a reason"),
    ],
)
def test_rule_finds(rule: Rule, text: str, path: str, said: str) -> None:
    finding = located(rule, source(text, path))[0]
    assert said in finding
    assert finding.startswith(f"{path}:")


@pytest.mark.parametrize(
    ("rule", "text", "path"),
    [
        (import_direction, "import bandit_core.shares\nimport streams.events", "streams/join/a.py"),
        (import_direction, "import streams.app", "streams/commands/worker.py"),
        (import_direction, "import streams.state_machine", "streams/join/a.py"),
        (pure_imports, "import numpy\nfrom datetime import datetime", "bandit_core/a.py"),
        (pure_imports, "import time", STATE),
        (pure_calls, "rng = np.random.default_rng(seed)", "bandit_core/a.py"),
        (global_random, "def f(rng: np.random.Generator): ...", "bandit_core/a.py"),
        (function_length, 'def f():\n    """' + "x\n" * 40 + '"""\n' + "    x = 1\n" * 69, STATE),
        (line_length, "# " + "x" * 108, STATE),
        (line_length, "x = 1  # no" + "qa: S101 - " + "x" * 109, STATE),
        (module_length, "x = 1\n" * 500, STATE),
        (module_docstring, "x = 1", "streams/_private.py"),
        (declared_names, "from a import b\n__all__ = ['C', 'b', 'd']\nC = 1\nE = 2\ndef d(): ...", STATE),
        (product_habits, "assert x", "tests/test_x.py"),
        (type_ignores, "x = 1  # type: ignore[misc]  # the stub is wrong", STATE),
    ],
)
def test_rule_lets_pass(rule: Rule, text: str, path: str) -> None:
    assert located(rule, source(text, path)) == []


@pytest.mark.parametrize(
    "text",
    [
        "see https://pypi" + ".org/x",
        "repo.maven" + ".apache.x",
        "cd /wo" + "rk/main",
        "/ho" + "me/me/x",
        "# TO" + "DO: x",
    ],
)
def test_forbidden_text_is_found(text: str) -> None:
    (finding,) = forbidden_text("README.md", "first line\n" + text)
    assert finding.startswith("README.md:2: ")


@pytest.mark.parametrize(
    "text", ["a/work/b", "~/.cache", "$HOME/x", "/tmp", "https://keepachangelog.com", "TODOs"]
)
def test_harmless_text_passes(text: str) -> None:
    assert not list(forbidden_text("README.md", text))
