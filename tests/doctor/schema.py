"""The part of JSON Schema that docs/doctor.schema.json uses, and a complaint about any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs/doctor.schema.json").read_text())

_TYPES = {"object": dict, "array": list, "string": str}
_KNOWN = {
    "$schema", "title", "type", "const", "enum", "required", "properties", "additionalProperties",
    "items",
}  # fmt: skip


def problems(value: Any, schema: Any = SCHEMA, where: str = "$") -> list[str]:
    """Every way in which `value` is not as `schema` says; none is valid."""
    assert set(schema) <= _KNOWN, set(schema) - _KNOWN
    found = []
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is none of {schema['enum']}")
    if "type" in schema and not isinstance(value, _TYPES[schema["type"]]):
        return [*found, f"{where}: {type(value).__name__} is no {schema['type']}"]
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        found += [f"{where}: no {name}" for name in schema.get("required", []) if name not in value]
        for name, part in value.items():
            if name in parts:
                found += problems(part, parts[name], f"{where}.{name}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{where}: {name} is not documented")
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += problems(item, schema.get("items", {}), f"{where}[{index}]")
    return found
