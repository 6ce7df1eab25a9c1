"""The methods of this version, and what a policy may say about each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tersor.compiler.diagnostics import did_you_mean
from tersor.compiler.errors import RequestError
from tersor.compiler.method import Method
from tersor.passes import METHODS

BY_ID: Mapping[str, Method[Any]] = {method.id: method for method in METHODS}


def methods() -> list[dict[str, Any]]:
    """Every method as plain data: id, family, title, source, needs, kinds, scope, and its parameters."""
    return [describe(method) for method in METHODS]


def method_named(name: str) -> Method[Any]:
    """The method with an id, or with the only id that ends so. Raises RequestError."""
    found = [i for i in BY_ID if i == name] or [i for i in BY_ID if i.endswith(f".{name}")]
    if len(found) == 1:
        return BY_ID[found[0]]
    if found:
        raise RequestError(f"`{name}` fits several methods: {', '.join(sorted(found))}")
    tails = {i.split(".", n)[-1] for i in BY_ID for n in range(i.count(".") + 1)}
    hint = did_you_mean(name, sorted(tails)) or "`tersor methods` lists them all"
    raise RequestError(f"there is no method `{name}`; {hint}")


def describe(method: Method[Any]) -> dict[str, Any]:
    """One method as plain data."""
    schema = method.Params.model_json_schema()
    properties: Mapping[str, Mapping[str, Any]] = schema.get("properties", {})
    required = schema.get("required", [])
    return {
        "id": method.id,
        "family": method.family,
        "title": method.title,
        "source": method.source,
        "needs": sorted(method.needs),
        "kinds": sorted(method.kinds),
        "scope": method.scope,
        "params": [_param(name, p, name in required) for name, p in properties.items()],
    }


def _param(name: str, schema: Mapping[str, Any], required: bool) -> dict[str, Any]:
    return {
        "name": name,
        "type": _type(schema),
        "range": _range(schema),
        "required": required,
        "default": schema.get("default"),
        "description": schema.get("description", ""),
    }


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(schema.get("anyOf", [schema]))


def _type(schema: Mapping[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return "choice"
    names = [str(s.get("type", "choice")) for s in _alternatives(schema)]
    return " or ".join(dict.fromkeys(names))


def _range(schema: Mapping[str, Any]) -> str:
    return " or ".join(dict.fromkeys(filter(None, (_range_of(s) for s in _alternatives(schema)))))


def _range_of(schema: Mapping[str, Any]) -> str:
    """`2..8`, `0 <= x < 1`, `{32, 64, row}`; empty where every value of the type goes."""
    if "enum" in schema:
        return "{" + ", ".join(str(v) for v in schema["enum"]) + "}"
    if "const" in schema:
        return str(schema["const"])
    if "minimum" in schema and "maximum" in schema:
        return f"{schema['minimum']}..{schema['maximum']}"
    bounds = [("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<")]
    return " and ".join(f"{sign} {schema[key]}" for key, sign in bounds if key in schema)
