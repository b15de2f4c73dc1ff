"""Machine-readable descriptions of the public topics, generated from the types that the code decodes with.

``python -m streams.schemas docs`` writes ``docs/schemas/*.json`` (JSON Schema, draft 2020-12) and
``docs/asyncapi.yaml`` (AsyncAPI 3.0); a test generates them again and compares. They describe what is
accepted, so unknown fields are allowed everywhere.
"""

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from streams.allocations import Allocation
from streams.config import TopicName
from streams.events import Conversion, Exposure
from streams.experiments.definition import ExperimentRecord
from streams.results import Results

DIALECT = "https://json-schema.org/draft/2020-12/schema"

# What decoding checks beyond the types: an arm is named exactly outside the comparison group.
_ARM_UNLESS_COMPARISON = {
    "if": {"properties": {"group": {"const": "comparison"}}, "required": ["group"]},
    "then": {"properties": {"arm_id": {"type": "null"}}},
    "else": {"properties": {"arm_id": {"type": "string"}}, "required": ["arm_id"]},
}


class PublicTopic(NamedTuple):
    """A topic that others write or read: its type, key, and who does which."""

    topic: TopicName
    type: type[msgspec.Struct]
    key: str
    key_field: str
    action: str
    title: str
    description: str


PUBLIC_TOPICS = (
    PublicTopic(
        "exposures",
        Exposure,
        "unit_id, UTF-8; partition by murmur2 of the key",
        "unit_id",
        "receive",
        "Exposures",
        "Producers write one record each time a unit is shown an arm. See docs/producers.md.",
    ),
    PublicTopic(
        "conversions",
        Conversion,
        "unit_id, UTF-8; partition by murmur2 of the key",
        "unit_id",
        "receive",
        "Conversions",
        "Producers write one record each time a unit does what a metric counts. See docs/producers.md.",
    ),
    PublicTopic(
        "allocations",
        Allocation,
        "experiment_id, UTF-8",
        "experiment_id",
        "send",
        "Allocations",
        "Compacted: the newest allocation table of every experiment; a record without value (a tombstone)"
        " ends one. Keep the greatest version.",
    ),
    PublicTopic(
        "results",
        Results,
        "experiment_id, UTF-8",
        "experiment_id",
        "send",
        "Results",
        "Compacted: what may be reported of every experiment, as of its newest allocation's boundary; a"
        " record without value (a tombstone) ends one. See docs/experiments.md.",
    ),
    PublicTopic(
        "experiments",
        ExperimentRecord,
        "experiment_id, UTF-8",
        "experiment_id",
        "send",
        "Experiments",
        "Compacted: every experiment with all versions of its definition. Read it; write it only with"
        " `bandit-streams experiments`. Of records with one revision the first holds.",
    ),
)


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the schema of each public topic's value, by file name without extension."""
    found = {}
    for public in PUBLIC_TOPICS:
        schema = msgspec.json.schema(public.type)
        if public.type is Exposure:
            schema["$defs"]["Exposure"] |= _ARM_UNLESS_COMPARISON
        found[public.type.__name__] = {"$schema": DIALECT, "title": public.type.__name__} | schema
    return found


def field_table(event: type[msgspec.Struct]) -> str:
    """Return a Markdown table of an event's fields, as docs/producers.md has it."""
    schema = msgspec.json.schema(event)["$defs"][event.__name__]
    rows = ["| field | type | | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        need = "required" if name in schema["required"] else _default(field["default"])
        rows.append(f"| `{name}` | {_type_words(field)} | {need} | {field['description']} |")
    return "\n".join(rows) + "\n"


def _default(value: object) -> str:
    return "optional" if value is None else f"default `{json.dumps(value)}`"


def _type_words(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type_words(option) for option in field["anyOf"] if option.get("type") != "null")
    if "enum" in field:
        return " or ".join(f"`{option}`" for option in field["enum"])
    words = {"integer": "whole number", "object": "object of strings"}.get(field["type"], field["type"])
    if field.get("format") == "date-time":
        return "RFC 3339 string"
    if "maxLength" in field:
        words += f", {field.get('minLength', 0)} to {field['maxLength']} characters"
    for key, symbol in (("exclusiveMinimum", ">"), ("minimum", "≥"), ("maximum", "≤")):
        if key in field:
            words += f", {symbol} {field[key]:g}"
    return str(words)


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document of the public topics; payloads point at the JSON Schemas beside it."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for public in PUBLIC_TOPICS:
        name = public.type.__name__
        channels[public.topic] = {
            "address": public.topic,
            "title": public.title,
            "description": public.description,
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "bindings": {"kafka": {"bindingVersion": "0.5.0", "topic": public.topic}},
        }
        operations[f"{public.action}{public.title}"] = {
            "action": public.action,
            "channel": {"$ref": f"#/channels/{public.topic}"},
            "messages": [{"$ref": f"#/channels/{public.topic}/messages/{name}"}],
        }
        messages[name] = {
            "name": name,
            "contentType": "application/json",
            "payload": {
                "schemaFormat": "application/schema+json;version=draft-2020-12",
                "schema": {"$ref": f"schemas/{name}.json"},
            },
            "bindings": {
                "kafka": {"key": {"type": "string", "description": public.key}, "bindingVersion": "0.5.0"}
            },
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "bandit-streams",
            "version": metadata.version("bandit-streams"),
            "license": {"name": "Apache-2.0"},
            "description": "Topics that producers write and edge services read. Actions are the product's: it"
            " receives exposures and conversions and sends the rest."
            " Names may have a prefix (setting topic_prefix).",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def files() -> dict[str, str]:
    """Return every generated file's text by its path below docs/."""
    texts = {
        f"schemas/{name}.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in json_schemas().items()
    }
    texts["asyncapi.yaml"] = "# Generated by `python -m streams.schemas docs`.\n" + yaml.safe_dump(
        asyncapi(), sort_keys=False, allow_unicode=True, width=100
    )
    return texts


def main(folder: Path) -> None:
    """Write all files below a folder."""
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
