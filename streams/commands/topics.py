"""``bandit-streams topics``: create, check and list the topics."""

import asyncio
import json

import click

from streams.commands import pass_settings
from streams.config import Settings
from streams.errors import TopicsMismatch
from streams.topics import Finding, check_topics, create_topics, describe_topics, topic_specs


@click.group()
def command() -> None:
    """Create, check and list the topics."""


@command.command("create")
@pass_settings
def create(settings: Settings) -> None:
    """Create the topics that are missing, then check all of them.

    Topics that are there stay as they are. Ends with status 78 if the check finds an error.
    """
    created = asyncio.run(create_topics(settings))
    for name in created:
        click.echo(f"created {name}")
    if not created:
        click.echo("nothing to create")
    _report(asyncio.run(check_topics(settings)), as_json=False)


@command.command("check")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each finding.")
@pass_settings
def check(settings: Settings, as_json: bool) -> None:
    """Compare the topics with what the settings say.

    Ends with status 78 if there is an error; warnings alone end with 0.
    """
    _report(asyncio.run(check_topics(settings)), as_json=as_json)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each topic.")
@pass_settings
def list_command(settings: Settings, as_json: bool) -> None:
    """Show every topic: partitions, replicas and policy, as they should be and whether they are there."""
    states = asyncio.run(describe_topics(settings))
    for spec in topic_specs(settings):
        state = states.get(spec.role)
        if as_json:
            click.echo(
                json.dumps(
                    {
                        "topic": spec.name,
                        "role": spec.role,
                        "present": state is not None,
                        "partitions": state.partitions if state else None,
                        "replication_factor": state.replication_factor if state else None,
                        "configs": {key: state.configs.get(key) for key in spec.configs} if state else None,
                        "specified": {
                            "partitions": spec.partitions,
                            "replication_factor": spec.replication_factor,
                            "configs": dict(spec.configs),
                        },
                    }
                )
            )
        else:
            found = f"{state.partitions} x {state.replication_factor}" if state else "missing"
            policy = state.configs.get("cleanup.policy", "") if state else spec.configs["cleanup.policy"]
            click.echo(f"{spec.name:<32} {found:<10} {policy}")


def _report(findings: list[Finding], *, as_json: bool) -> None:
    for finding in findings:
        if as_json:
            click.echo(
                json.dumps(
                    {
                        "topic": finding.topic,
                        "severity": finding.severity,
                        "problem": finding.problem,
                        "action": finding.action,
                    }
                )
            )
        else:
            click.echo(
                f"{finding.severity}: {finding.topic}: {finding.problem}\n  what to do: {finding.action}"
            )
    if not findings and not as_json:
        click.echo("topics are as they should be")
    if any(finding.severity == "error" for finding in findings):
        click.get_current_context().exit(TopicsMismatch.exit_code)
