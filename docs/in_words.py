"""Types, defaults and tables as the manual writes them."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def attribute_docs(owner: type) -> dict[str, str]:
    """The strings below the attributes of a class, by name; Python itself does not keep them."""
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            continue
        targets = [before.target] if isinstance(before, ast.AnnAssign) else getattr(before, "targets", [])
        if isinstance(after.value.value, str) and targets and isinstance(targets[0], ast.Name):
            found[targets[0].id] = inspect.cleandoc(after.value.value)
    return found


def first_paragraph(owner: type) -> str:
    """How a class introduces itself."""
    return " ".join((inspect.getdoc(owner) or "").split("\n\n")[0].split())


def kinds(model: type[BaseModel]) -> dict[str, str]:
    """Type and range of each field, by key."""
    return {key: kind(each) for key, each in model.model_json_schema()["properties"].items()}


def kind(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words.

    >>> kind({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 256}, {"const": "auto"}]})
    'whole number, from 1 to 256, or `auto`'
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2].removesuffix("Part")
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return codes(schema["enum"])
    for word in ("anyOf", "oneOf"):
        if word in schema:
            named = list(dict.fromkeys(kind(each) for each in schema[word] if each.get("type") != "null"))
            return (", or " if any("," in each for each in named) else " or ").join(named)
    said = schema.get("type")
    if said == "array" and "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} of {kind(schema['prefixItems'][0])}"
    if said == "array":
        return f"list of {kind(schema.get('items', {}))}"
    if said == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {kind(schema['additionalProperties'])}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}
    name = words.get(str(said), "mapping" if said == "object" else "any")
    return name + (f" like {code(schema['pattern'])}" if "pattern" in schema else "") + _bounds(schema)


def default(value: Any) -> str:
    """A default as one would type it; a group of its own shows its defaults itself."""
    if value is None or value in ("", [], {}, ()):
        return "none"
    if isinstance(value, BaseModel):
        return "its own"
    if isinstance(value, bool):
        return code(str(value).lower())
    return code(
        f"{value:g}" if isinstance(value, float) else value if isinstance(value, str | int | Path) else repr(value)
    )


def code(value: object) -> str:
    """Something to be typed as it stands."""
    return f"`{value}`"


def codes(values: Iterable[object]) -> str:
    """Several of them."""
    return ", ".join(code(value) for value in values)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def page(title: str, *parts: str) -> str:
    """Paragraphs below a title; empty ones are left out."""
    return "\n\n".join((f"# {title}", *(part for part in parts if part))) + "\n"


def _bounds(schema: dict[str, Any]) -> str:
    words = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"))
    found = [f"{word} {schema[key]:.15g}" for key, word in words if key in schema]
    return f", {' '.join(found)}" if found else ""


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
