"""Write the JSON Schema of the reports into docs/report.schema.json: `python docs/generate_schema.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ckpt_tools import reports

PAGE = Path(__file__).with_name("report.schema.json")


def make_schema() -> dict[str, Any]:
    """The schema of any report, told apart by `command`."""
    kinds = [
        kind
        for name in reports.__all__
        if isinstance(kind := getattr(reports, name), type) and issubclass(kind, reports.Report)
    ]
    commands = {kind: kind.__dataclass_fields__["command"].default for kind in kinds}
    complete = [kind for kind in kinds if isinstance(commands[kind], str)]
    adapters = [(kind, "serialization", TypeAdapter(kind)) for kind in complete]
    places, schema = TypeAdapter.json_schemas(adapters, ref_template="#/$defs/{model}")
    defs = schema["$defs"]
    for kind in complete:
        defs[kind.__name__]["properties"]["command"] = {"const": commands[kind]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Reports of pet-surgery",
        "description": "docs/report-schema.md says what each field means.",
        "oneOf": [places[(kind, "serialization")] for kind in complete],
        "$defs": {name: _own(definition) for name, definition in defs.items()},
    }


def _own(definition: Any) -> Any:
    """A definition as the reports are written: all fields are there, and a number that is not finite is null."""
    if isinstance(definition, list):
        return [_own(one) for one in definition]
    if not isinstance(definition, dict):
        return definition
    found = {key: _own(value) for key, value in definition.items() if key not in ("title", "default", "description")}
    if found.get("type") == "number":
        found["type"] = ["number", "null"]
    if "properties" in found:
        found["required"] = list(found["properties"])
    return found


def to_text(schema: dict[str, Any]) -> str:
    """The schema as the file has it."""
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    PAGE.write_text(to_text(make_schema()), encoding="utf-8")
