"""The documentation against the product: commands parse, code runs, links resolve, nothing is left out."""

import ast
import itertools
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import click
import msgspec
import pytest
import yaml
from pydantic import BaseModel

from streams import cli
from streams.config import SecuritySettings, Settings
from streams.deadletters import DeadLetter, marker_headers, to_headers
from streams.embedded import Broker
from streams.errors import DeadLetterReason
from streams.events import Conversion, Exposure
from streams.topics import create_topics

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NEEDS_KAFKA = re.compile(r"load_settings|EdgeClient|aiokafka|confluent_kafka")


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^( *)```(\w+)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(page, line, match[2], textwrap.dedent(match[3])))
    return [block for block in found if block.language in languages]


def shell_lines(block: Block) -> Iterator[str]:
    for line in block.text.replace("\\\n", " ").splitlines():
        command = line.strip().removeprefix("$ ")
        if command and not command.startswith("#"):
            yield command


def invocations() -> list[tuple[str, list[str]]]:
    """Every `bandit-streams ...` of a shell block, with the place where it stands."""
    found = []
    for block in blocks("sh", "shell", "bash", "console"):
        for line in shell_lines(block):
            for part in re.split(r"\s(?:\||&&|;)\s", line):
                words = shlex.split(part, comments=True)
                words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
                if words and Path(words[0]).name == "bandit-streams":
                    redirected = [n for n, word in enumerate(words) if re.match(r"\d?>|<", word)]
                    found.append((f"{block} {part}", words[1 : redirected[0] if redirected else None]))
    return found


def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    with click.Context(command) as ctx:
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None
            yield from leaves(child, f"{path} {name}")


def slug(heading: str) -> str:
    """Anchor of a heading as code hosts make it."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def without_code(page: Path) -> str:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


# ---- commands


def test_there_are_pages_and_commands_in_them() -> None:
    names = {page.name for page in PAGES}
    assert {"README.md", "ARCHITECTURE.md", "CHANGELOG.md", "operators.md"} <= names
    assert len(invocations()) > 20


@pytest.mark.parametrize(("where", "args"), invocations(), ids=[where for where, _ in invocations()])
def test_commands_in_the_documentation_parse(
    where: str, args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parse with the real command line; nothing is invoked."""
    reached: list[str] = []
    monkeypatch.setattr(click.Command, "invoke", lambda _self, ctx: reached.append(ctx.command_path))
    monkeypatch.chdir(ROOT)
    status = cli.main(args)
    error = capsys.readouterr().err
    placeholder = re.search(
        r"(?:File|Path|Directory) '[A-Z_]+' does not exist|'[a-z-]+\.(yaml|json)' does not", error
    )
    assert status == 0 or placeholder, f"{where}: {error}"
    if status == 0 and not {"--help", "--version"} & set(args):
        assert reached[-1] != "bandit-streams"


@pytest.mark.parametrize("block", blocks("sh", "shell", "bash", "console"), ids=str)
def test_make_targets_in_the_documentation_exist(block: Block) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in shell_lines(block):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            used = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            assert set(used) <= targets, f"{block}: {line}"


def test_every_command_is_documented() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [path for path, _ in leaves(cli.cli, "bandit-streams") if path not in text]
    assert not missing


# ---- code


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_in_the_documentation_is_python(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", [b for b in blocks("python") if not NEEDS_KAFKA.search(b.text)], ids=str)
def test_python_in_the_documentation_runs(block: Block) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.integration
@pytest.mark.parametrize(
    "block",
    [b for b in blocks("python") if NEEDS_KAFKA.search(b.text) and "confluent_kafka" not in b.text],
    ids=str,
)
async def test_python_that_needs_kafka_runs(block: Block, broker: Broker, topic_prefix: str) -> None:
    environment = {
        "BANDIT_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "BANDIT_TOPIC_PREFIX": topic_prefix,
        "BANDIT_REPLICATION_FACTOR": "1",
        "BANDIT_MIN_INSYNC_REPLICAS": "1",
    }
    await create_topics(
        Settings(
            bootstrap_servers=broker.bootstrap_servers,
            topic_prefix=topic_prefix,
            replication_factor=1,
            min_insync_replicas=1,
        )
    )
    text = block.text.replace("localhost:9092", broker.bootstrap_servers)
    done = subprocess.run(  # noqa: ASYNC221 - the example is the only thing that runs
        [sys.executable, "-c", text],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("block", blocks("yaml", "json", "toml"), ids=str)
def test_data_in_the_documentation_is_well_formed(block: Block) -> None:
    if block.language == "toml":
        import tomllib

        tomllib.loads(block.text)
    elif block.language == "json":
        for document in block.text.strip().split("\n\n"):
            msgspec.json.decode(document)
    else:
        list(yaml.safe_load_all(block.text))


# ---- links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{page.name}: no heading #{anchor} in {linked.name}"


def test_slugs_are_those_of_code_hosts() -> None:
    assert slug("What `--again` means, and why") == "what---again-means-and-why"
    assert slug("BanditLagHigh") == "banditlaghigh"


# ---- nothing is left out


def settings_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_names(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    names = list(settings_names(Settings))
    assert set(names) >= {f"security.{name}" for name in SecuritySettings.model_fields}
    assert not [name for name in names if f"`{name}`" not in text]


def test_settings_named_in_the_documentation_exist() -> None:
    known = {"BANDIT_CONFIG", *(f"BANDIT_{n.replace('.', '__').upper()}" for n in settings_names(Settings))}
    prefixes = {f"BANDIT_{name.upper()}__" for name in ("security", "rocksdb", "generate")}
    for page in PAGES:
        for name in re.findall(r"\bBANDIT_[A-Z_]+\b", page.read_text(encoding="utf-8")):
            assert name in known or name in prefixes, f"{page.name}: {name}"


@pytest.mark.parametrize("event", [Exposure, Conversion])
def test_every_field_of_an_event_is_documented(event: type[msgspec.Struct]) -> None:
    text = (ROOT / "docs" / "producers.md").read_text(encoding="utf-8")
    assert not [name for name in event.__struct_fields__ if f"`{name}`" not in text]


def test_every_reason_and_header_of_dead_letters_is_documented() -> None:
    text = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    assert not [reason for reason in get_args(DeadLetterReason) if f"| `{reason}` |" not in text]
    letter = DeadLetter(
        topic="t", partition=0, offset=0, key=b"", value=b"", reason="late", field="$", message="m"
    )
    headers = {name for name, _ in [*to_headers(letter), *marker_headers(letter.identity, 0)]} | {
        "bandit-truncated"
    }
    assert not [name for name in headers if f"| `{name}` |" not in text]
    documented = set(re.findall(r"^\| `((?:__connect|bandit-)[a-z_.-]+)` \|", text, re.MULTILINE))
    assert documented == headers


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    text = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### (Bandit\w+)$", text, re.MULTILINE)) == alerts


def test_exit_statuses_are_documented() -> None:
    import streams.errors

    kinds = [k for k in vars(streams.errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    statuses = {kind.exit_code for kind in kinds if issubclass(kind, streams.errors.BanditError)}
    text = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    rows = {int(n) for n in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert rows == statuses | {0, 2, cli.EXIT_UNEXPECTED, cli.EXIT_INTERRUPTED}


def test_the_changelog_has_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{cli.version()}]" in text or "## [Unreleased]" in text
