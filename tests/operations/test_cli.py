"""The command line: help, errors and exit codes, logging; in a process of its own where that matters."""

import json
import logging
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from streams import cli
from streams.commands import pass_settings
from streams.config import Settings
from streams.errors import BrokerUnavailable, DefinitionInvalid, TopicsMismatch
from streams.logs import configure_logging

SCRIPT = Path(sys.executable).with_name("bandit-streams")


@pytest.fixture(autouse=True)
def root_logging() -> Iterator[None]:
    """Leave the root logger as it was: commands configure it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def run(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **(env or {})},
    )


def register(monkeypatch: pytest.MonkeyPatch, command: click.Command) -> None:
    module = types.ModuleType("streams.commands.trial")
    module.command = command  # type: ignore[attr-defined]  # a module made up for the test
    monkeypatch.setitem(sys.modules, "streams.commands.trial", module)
    monkeypatch.setitem(cli.COMMANDS, "trial", ("trial", "Only in tests."))


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_registered_command_can_be_imported_and_has_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith("Usage: bandit-streams " + name)


def test_help_imports_neither_kafka_nor_the_maths() -> None:
    code = (
        "import sys; from streams.cli import main; main(['--help']);"
        "print([m for m in ('aiokafka', 'faust', 'numpy', 'scipy', 'pydantic', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_console_script_help_lists_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name, (_, text) in cli.COMMANDS.items():
        assert name in done.stdout
        assert text in done.stdout


def test_version() -> None:
    done = run("--version")
    assert done.stdout.split() == ["bandit-streams", cli.version()]


@pytest.mark.parametrize("args", [["no-such-command"], ["--no-such-option"], ["worker", "--no-such-option"]])
def test_wrong_usage_exits_2_and_points_to_help(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BrokerUnavailable("no answer", where="broker a:1", action="start it"), 75),
        (TopicsMismatch(["counts: missing"], action="run `bandit-streams topics create`"), 78),
        (DefinitionInvalid(["arms: empty; name two", "control: none; name one"], where="x.yaml"), 65),
    ],
)
def test_our_errors_are_a_message_with_an_exit_code_and_no_traceback(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def command() -> None:
        raise error

    register(monkeypatch, command)
    assert cli.main(["trial"]) == status
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for attribute in ("what", "where", "action"):
        assert getattr(error, attribute) in err
    assert cli.main(["--debug", "trial"]) == status
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_error_is_one_message_and_exit_70(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def command() -> None:
        raise ZeroDivisionError("division of nothing")

    register(monkeypatch, command)
    assert cli.main(["trial"]) == cli.EXIT_UNEXPECTED
    err = capsys.readouterr().err
    assert "ZeroDivisionError: division of nothing" in err
    assert "--debug" in err
    assert "Traceback" not in err
    assert cli.main(["--log-level", "info", "trial"]) == cli.EXIT_UNEXPECTED
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def command() -> None:
        raise KeyboardInterrupt

    register(monkeypatch, command)
    assert cli.main(["trial"]) == cli.EXIT_INTERRUPTED


def test_a_reader_that_leaves_is_not_an_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{SCRIPT} --help | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (0, cli.EXIT_BROKEN_PIPE)
    assert "Traceback" not in done.stderr


def test_settings_come_from_the_file_of_config_and_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @click.option("--shout", is_flag=True)
    @pass_settings
    def command(settings: Settings, shout: bool) -> None:
        click.echo(f"{settings.group} {settings.topic_prefix} {shout}")

    register(monkeypatch, command)
    file = tmp_path / "bandit.toml"
    file.write_text('group = "from-file"\ntopic_prefix = "file-"\n')
    monkeypatch.setenv("BANDIT_TOPIC_PREFIX", "env-")
    assert cli.main(["--config", str(file), "trial", "--shout"]) == 0
    assert capsys.readouterr().out == "from-file env- True\n"


def test_a_broken_configuration_does_not_break_help(tmp_path: Path) -> None:
    file = tmp_path / "bandit.toml"
    file.write_text("no_such_setting = 1\n")
    assert run("--config", str(file), "worker", "--help").returncode == 0
    done = run("--config", str(file), "worker")
    assert done.returncode == 78
    assert "no_such_setting" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_status_given_to_exit_is_the_process_status(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.pass_context
    def command(ctx: click.Context) -> None:
        ctx.exit(3)

    register(monkeypatch, command)
    assert cli.main(["trial"]) == 3


@pytest.mark.parametrize("roles", ["", "joiner", "join,reporter"])
def test_worker_refuses_unknown_roles(roles: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["worker", "--roles", roles]) == 78
    assert "join, allocator" in capsys.readouterr().err


def test_json_log_lines_can_be_parsed_and_carry_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    log = logging.getLogger("trial")
    log.debug("not shown")
    try:
        raise ValueError("π is not 3")
    except ValueError:
        log.exception("cannot go on with %s", "this")
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert record["level"] == "error"
    assert record["message"] == "cannot go on with this"
    assert record["time"].endswith("Z")
    assert "π is not 3" in record["traceback"]


def test_text_log_lines_have_time_level_logger_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "text")
    logging.getLogger("trial").warning("careful")
    line = capsys.readouterr().err.strip()
    assert line.endswith("Z WARNING trial: careful")
