"""Every reader takes any bytes: it reads them or says why not, and raises nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeft.contract.errors import EdgeftError
from edgeft.contract.manifest import FORMAT, REQUIRED, manifest_faults, sealed
from fuzz import targets

QUICK = settings(
    derandomize=True,
    deadline=None,
    max_examples=80,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
NAMES = sorted(targets.TARGETS)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1 << 70, 1 << 70) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """A good file with some of its bytes changed, taken away, doubled, or put in."""
    data = bytearray(draw(st.sampled_from(list(targets.seeds(name)))))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 8))
        data[place : place + size] = draw(
            st.one_of(
                st.binary(max_size=12),
                st.just(bytes(data[place : place + 4 * size])),
                st.sampled_from([b"[", b"{}", b"9999999999", b"\xff" * 9, b"-1"]),
            )
        )
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_read(name: str) -> None:
    assert any(targets.run(name, data) for data in targets.seeds(name))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_fuzzer_found(name: str) -> None:
    for data in targets.found(name):
        targets.run(name, data)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "template"])
@QUICK
@given(data=st.data())
def test_damaged_files(name: str, data: Any) -> None:
    targets.run(name, data.draw(damaged(name)))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "template"])
@QUICK
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    targets.run(name, data)


@QUICK
@given(
    key=st.sampled_from([*REQUIRED, "linears", "generation", "parity", "quant", "prompt", "default_adapter"]),
    value=VALUES,
)
def test_any_value_in_a_manifest(key: str, value: Any) -> None:
    manifest = {**json.loads(next(targets.seeds("manifest"))), key: value}
    assert isinstance(manifest_faults(manifest), list)
    targets.run("manifest", json.dumps(manifest).encode())


@QUICK
@given(
    entry=st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), VALUES, max_size=4),
    data=st.binary(max_size=16),
)
def test_any_entry_of_a_safetensors_header(entry: Any, data: bytes) -> None:
    targets.run("adapter", targets.safetensors(json.dumps({"q.A": entry}).encode(), data))


@QUICK
@given(record=VALUES)
def test_any_line_of_data(record: Any) -> None:
    targets.run("lines", json.dumps(record).encode())


@QUICK
@given(
    body=st.dictionaries(st.text(max_size=6), VALUES, min_size=1, max_size=4), flip=st.integers(1, 255), data=st.data()
)
def test_no_byte_of_a_sealed_manifest_changes_unseen(body: dict[str, Any], flip: int, data: Any) -> None:
    from edgeft.contract.manifest import _check_seal
    from edgeft.contract.opening import parse_json

    body = json.loads(json.dumps({**body, "format": FORMAT, "y": [1, 2]}, allow_nan=True), parse_constant=lambda _: 0)
    body.pop("digest", None)
    whole = sealed(json.dumps(body, indent=2)).encode()
    _check_seal(targets.FOLDER, whole, parse_json(whole, "whole"))
    place = data.draw(st.integers(0, len(whole) - 1))
    broken = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
    with pytest.raises(EdgeftError):
        _check_seal(targets.FOLDER, broken, parse_json(broken, "broken"))
