"""JSON Schemas and the AsyncAPI document: as generated from the types, and in agreement with what decodes."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from streams import schemas
from streams.errors import EventError
from streams.events import decode_conversion, decode_exposure
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward, encode_record

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GOLDEN = ROOT / "tests" / "golden" / "events" / "v1"


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((DOCS / "schemas" / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", schemas.files())
def test_files_are_as_generated(name: str) -> None:
    found = (DOCS / name).read_text(encoding="utf-8")
    assert found == schemas.files()[name], "run `python -m streams.schemas docs`"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden_events_are_valid(path: Path) -> None:
    validator(path.stem.split("_")[0].title()).validate(json.loads(path.read_bytes()))


@pytest.mark.parametrize(
    "changes",
    [
        {"unit_id": ""},
        {"unit_id": None},
        {"timestamp": -1},
        {"propensity": 0},
        {"group": "x"},
        {"group": "comparison"},
        {"arm_id": None},
        {"context": {"a": 1}},
        {"test": "no"},
    ],
)
def test_schema_and_decoder_refuse_the_same_exposures(changes: dict[str, Any]) -> None:
    event = json.loads((GOLDEN / "exposure_full.json").read_bytes()) | changes
    assert not validator("Exposure").is_valid(event)
    with pytest.raises(EventError):
        decode_exposure(json.dumps(event).encode())


@pytest.mark.parametrize("changes", [{"value": -1}, {"value": 1e10}, {"metric": ""}, {"value": "1"}])
def test_schema_and_decoder_refuse_the_same_conversions(changes: dict[str, Any]) -> None:
    event = json.loads((GOLDEN / "conversion_full.json").read_bytes()) | changes
    assert not validator("Conversion").is_valid(event)
    with pytest.raises(EventError):
        decode_conversion(json.dumps(event).encode())


def test_records_of_experiments_are_valid() -> None:
    record = ExperimentRecord(
        experiment_id="e",
        revision=1,
        status="live",
        arms=(Arm(arm_id="a"),),
        control="a",
        versions=(Counting(version=1, effective_from_ms=0, reward=Reward(metric="buy")),),
    )
    validator("ExperimentRecord").validate(json.loads(encode_record(record)))


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = yaml.safe_load((DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))
    references: list[str] = []

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            references.extend(value for key, value in node.items() if key == "$ref")
            for value in node.values():
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    collect(document)
    assert len(references) >= 5 * 4
    for reference in references:
        file, _, pointer = reference.partition("#/")
        target: Any = document
        if file:
            target = json.loads((DOCS / file).read_text(encoding="utf-8"))
        for part in pointer.split("/") if pointer else []:
            target = target[part]
        assert target
    assert set(document["channels"]) == {"exposures", "conversions", "allocations", "experiments", "results"}


def test_generating_writes_every_file(tmp_path: Path) -> None:
    schemas.main(tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.is_file()}
    assert written == set(schemas.files())
