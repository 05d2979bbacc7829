"""JSON schemas, before they become grammars: what nobody would look at is refused, never ignored in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from edgeft.contract.errors import EdgeftError, Faults, did_you_mean

MAX_SCHEMA = 1 << 20  # characters of a schema, or of a grammar
# What llguidance acts on or refuses by itself. It passes over everything else, so a misspelt bound would bind nothing.
KEYWORDS = frozenset("""
    $schema $id id $ref $defs definitions $anchor $dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor
    type enum const allOf anyOf oneOf not if then else dependencies dependentSchemas dependentRequired
    properties patternProperties additionalProperties required minProperties maxProperties propertyNames
    unevaluatedProperties items prefixItems additionalItems unevaluatedItems contains minContains maxContains
    uniqueItems minItems maxItems minLength maxLength pattern format
    minimum maximum exclusiveMinimum exclusiveMaximum multipleOf""".split())
ANNOTATIONS = frozenset("""
    $comment title description default example examples deprecated readOnly writeOnly discriminator $vocabulary
    contentEncoding contentMediaType contentSchema""".split())  # they allow and forbid nothing
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
PARTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items", "additionalProperties", "additionalItems", "not", "if",
         "then", "else", "contains", "propertyNames", "unevaluatedProperties", "unevaluatedItems")


def read_schema(schema: Mapping[str, Any] | str, name: str) -> str:
    """A schema as JSON text; EdgeftError says that it is no JSON object, or lists every keyword that would be
    passed over."""
    try:
        if isinstance(schema, str) and len(schema) > MAX_SCHEMA:
            raise ValueError(f"{len(schema)} characters, at most {MAX_SCHEMA} are read")
        value = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(value, allow_nan=False)
        parts = list(_parts(value, "#")) if isinstance(value, Mapping) else []
    except (TypeError, ValueError, RecursionError) as error:
        raise EdgeftError(f"{name}: is not JSON ({error})") from None
    if not isinstance(value, Mapping):
        raise EdgeftError(f"{name}: must hold a JSON schema, which is an object, found {type(value).__name__}.")
    faults = Faults(f"{name}: holds what would be passed over in silence")
    for place, part in parts:
        for key in part:
            if key not in KEYWORDS | ANNOTATIONS and not key.startswith("x-"):
                faults.add(f"{place}: unknown keyword {key!r}.{_nearest(key)}")
        for key in ("exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(part.get(key), bool):
                faults.add(f"{place}/{key}", declared=part[key], found="must be the bound itself, as since draft 6")
    faults.raise_if_any("Correct or remove it. Notes of your own may start with 'x-' or stand in '$comment'.")
    return text


def _nearest(key: str) -> str:
    """The keyword that was meant, if one is near."""
    found = did_you_mean(key, sorted(KEYWORDS))
    return found if "Did you mean" in found else ""


def _parts(schema: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema within a schema, with its place as a JSON pointer."""
    if not isinstance(schema, Mapping):
        return
    yield place, schema
    for key in MAPS:
        held = schema.get(key)
        for name, part in held.items() if isinstance(held, Mapping) else ():
            yield from _parts(part, f"{place}/{key}/{name}")
    for key in PARTS:
        held = schema.get(key)
        for index, part in enumerate(held) if isinstance(held, list | tuple) else ():
            yield from _parts(part, f"{place}/{key}/{index}")
        yield from _parts(held, f"{place}/{key}")
