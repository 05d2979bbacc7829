"""How far logits may lie apart: the kit's bounds, and a method's own with a reason each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TOLERANCES = {"fresh": 1e-5, "load": 1e-5, "lower": 1e-5, "merge": 1e-5}  # largest difference of any logit


def tolerance_of(tolerances: Mapping[str, Any], rule: str) -> float:
    """The method's own bound if it may have one, the kit's otherwise."""
    if rule in tolerances and not tolerance_faults({rule: tolerances[rule]}):
        return float(tolerances[rule][0])
    return TOLERANCES[rule]


def tolerance_faults(tolerances: Mapping[str, Any]) -> list[str]:
    """What keeps declared tolerances from being used."""
    faults = []
    for rule, declared in tolerances.items():
        if rule not in TOLERANCES:
            faults.append(f"tolerances: there is none for {rule!r} (there are {', '.join(TOLERANCES)})")
            continue
        value, reason = declared if isinstance(declared, tuple) and len(declared) == 2 else (declared, None)
        if not isinstance(reason, str) or not reason.strip():
            faults.append(f"tolerances[{rule!r}] has no reason: write (value, \"why it must be so large\")")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            faults.append(f"tolerances[{rule!r}] must be a number above 0, found {value!r}")
        elif math.isinf(value) and rule != "fresh":
            faults.append(f"tolerances[{rule!r}] is infinite, which only 'fresh' may be")
    return faults
