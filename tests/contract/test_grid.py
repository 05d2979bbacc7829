"""The grid is ONNX Runtime's own, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
from onnxruntime.capi import _pybind_state as ort

from edgeft.contract.grid import CHUNK, Grid, Quant, digest, fingerprint, pack, quantize, unpack

SHAPES = [(16, 256), (1, 1), (3, 7), (5, 100), (8, 130), (2, 33), (7, 129), (4, 127)]


def weights(shape, seed=0, kind="normal"):
    rng = np.random.default_rng(seed)
    made = rng.standard_normal(shape).astype(np.float32)
    if kind == "ties":  # multiples of a half step meet every rounding rule
        made = (rng.integers(-16, 17, shape) / 2).astype(np.float32)
    if kind == "near ties":  # a factor of its own per row: times 1/scale and divided by scale part here
        made = rng.integers(-16, 17, shape) / 2 * rng.uniform(0.1, 10, (shape[0], 1))
        made = made.astype(np.float32)
    if kind == "tiny":
        made *= np.float32(1e-30)
    if kind == "positive":  # the zero point is at an end
        made = np.abs(made)
    if kind == "heavy":
        made **= 5
    return made


def ort_grid(weight, bits, block, symmetric=True):
    rows, inside = weight.shape
    blocks = -(-inside // block)
    codes = np.zeros((rows, blocks, block * bits // 8), np.uint8)
    scales = np.zeros(rows * blocks, np.float32)
    zeros = np.zeros(rows * (-(-blocks * bits // 8)), np.uint8)
    call = ort.quantize_matmul_4bits if bits == 4 else ort.quantize_matmul_8bits
    padded = np.zeros((inside + 1, rows), np.float32)  # for an odd width the 4-bit kernel reads one row too far
    padded[:inside] = weight.T
    call(codes, padded[:inside], scales, zeros, block, rows, inside, symmetric)
    return known(codes, bits, inside), scales.reshape(rows, blocks), zeros.reshape(rows, -1)


def known(codes, bits, inside):
    """Codes without the one that no weight stands for: what the kernel read too far, in half a byte of padding."""
    codes = codes.copy()
    flat = codes.reshape(len(codes), -1)
    if bits == 4 and inside % 2:
        flat[:, inside // 2] &= 15
    flat[:, -(-inside * bits // 8) :] = 0
    return codes


@pytest.mark.parametrize("kind", ["normal", "ties", "near ties", "tiny", "heavy", "positive"])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_scales_and_zero_points_are_onnxruntimes(bits, symmetric, block, kind):
    for seed, shape in enumerate(SHAPES):
        weight = weights(shape, seed, kind)
        ours = quantize(weight, bits, block, symmetric)
        codes, scales, zeros = ort_grid(weight, bits, block, symmetric)
        np.testing.assert_array_equal(ours.scales.view(np.uint32), scales.view(np.uint32), err_msg=str(shape))
        np.testing.assert_array_equal(known(ours.codes, bits, shape[1]), codes, err_msg=str(shape))
        if symmetric:
            assert ours.zeros is None
            assert (ours.zero_points == 1 << (bits - 1)).all()
        else:
            np.testing.assert_array_equal(ours.zeros, zeros, err_msg=str(shape))
            assert ours.zero_points.shape == ours.scales.shape


@pytest.mark.parametrize("bits", [4, 8])
def test_one_changed_weight_changes_the_codes(bits):
    weight = weights((4, 64))
    other = weight.copy()
    other[2, 5] += 1
    assert (quantize(weight, bits, 32).codes != quantize(other, bits, 32).codes).any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_at_most_the_step(bits, shape):
    """Half a step, but for values beyond the positive end, which lacks the last code: one step."""
    weight = weights(shape)
    grid = quantize(weight, bits, 32)
    assert grid.dequantize().shape == shape
    assert grid.dequantize().dtype == np.float32
    step = np.repeat(np.abs(grid.scales), 32, axis=1)[:, : shape[1]]
    error = np.abs(grid.dequantize() - weight)
    codes = unpack(grid.codes, bits).reshape(shape[0], -1)[:, : shape[1]]
    clipped = codes == (1 << bits) - 1
    assert (error <= step * np.where(clipped, 1, 0.5) * (1 + 1e-4)).all()


def test_eight_bits_are_finer_than_four():
    weight = weights((16, 128))
    error = {bits: np.abs(quantize(weight, bits, 32).dequantize() - weight).mean() for bits in (4, 8)}
    assert 0 < error[8] < error[4] / 8


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_on_the_grid_stay_where_they_are(bits):
    once = quantize(weights((8, 100)), bits, 32)
    np.testing.assert_allclose(quantize(once.dequantize(), bits, 32).dequantize(), once.dequantize(), rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros(bits):
    grid = quantize(np.zeros((3, 40), np.float32), bits, 16)
    assert not grid.scales.any()
    assert not grid.dequantize().any()
    codes, _, _ = ort_grid(np.zeros((3, 40), np.float32), bits, 16)
    np.testing.assert_array_equal(grid.codes, codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_value_of_largest_magnitude_is_exact(bits):
    weight = np.zeros((2, 32), np.float32)
    weight[:, 3] = 0.7, -0.7
    np.testing.assert_array_equal(quantize(weight, bits, 32).dequantize(), weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_large_weight_is_worked_on_in_parts(monkeypatch, bits):
    weight = weights((9, 70))
    whole = quantize(weight, bits, 16)
    monkeypatch.setattr("edgeft.contract.grid.CHUNK", 1)
    parts = quantize(weight, bits, 16)
    assert weight.size < CHUNK
    np.testing.assert_array_equal(whole.codes, parts.codes)
    np.testing.assert_array_equal(whole.scales, parts.scales)


def test_pack_and_unpack():
    codes = np.arange(32, dtype=np.uint8).reshape(2, 16) % 16
    packed = pack(codes, 4)
    assert packed.shape == (2, 8)
    assert packed[0, 0] == 0x10  # the first in the lower half
    np.testing.assert_array_equal(unpack(packed, 4), codes)
    assert (unpack(packed, 4) != codes[:, ::-1]).any()
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pack(unpack(every, 4), 4), every)
    np.testing.assert_array_equal(unpack(pack(every, 8), 8), every)


def test_dequantize_takes_the_padding_off():
    grid = Grid(np.full((1, 1, 16), 0xFF, np.uint8), np.ones((1, 1), np.float32), 4, 32, 5)
    np.testing.assert_array_equal(grid.dequantize(), np.full((1, 5), 7, np.float32))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_search_is_never_worse_than_rounding_to_nearest(bits, shape, symmetric):
    for kind in ("normal", "heavy", "ties", "positive"):
        weight = weights(shape, 3, kind)
        errors = {rounding: ((quantize(weight, bits, 32, symmetric, rounding).dequantize() - weight) ** 2).sum()
                  for rounding in ("rtn", "mse")}
        assert errors["mse"] <= errors["rtn"] + 1e-9 * (weight**2).sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_finds_a_clearly_better_grid(symmetric):
    weight = weights((64, 512))
    errors = {rounding: ((quantize(weight, 4, 128, symmetric, rounding).dequantize() - weight) ** 2).sum()
              for rounding in ("rtn", "mse")}
    assert errors["mse"] < 0.95 * errors["rtn"]


def test_an_asymmetric_grid_is_finer_for_what_lies_on_one_side():
    weight = np.abs(weights((16, 128)))
    error = {symmetric: np.abs(quantize(weight, 4, 32, symmetric).dequantize() - weight).mean()
             for symmetric in (True, False)}
    assert 0 < error[False] < 0.7 * error[True]


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_stays_zero_on_an_asymmetric_grid(bits):
    weight = weights((4, 96))
    weight[:, ::3] = 0
    assert not quantize(weight, bits, 32, False).dequantize()[:, ::3].any()
    assert not quantize(np.zeros((3, 40), np.float32), bits, 16, False, "mse").dequantize().any()


def test_a_digest_is_of_codes_scales_and_zero_points():
    grid = quantize(weights((6, 70)), 4, 32, False)
    whole = digest([grid])
    assert digest([grid.rows(0, 2), grid.rows(2, 6)]) == whole
    assert digest([grid.rows(2, 6), grid.rows(0, 2)]) != whole
    for part in ("codes", "scales", "zeros"):
        other = getattr(grid, part).copy()
        other.reshape(-1)[3] += 1
        assert digest([replace(grid, **{part: other})]) != whole
    assert digest([replace(grid, zeros=None)]) != whole
    assert digest([replace(grid, in_features=69)]) != whole


def test_a_fingerprint_is_of_names_and_digests():
    first = fingerprint({"a": "1", "b": "2"})
    assert fingerprint({"b": "2", "a": "1"}) == first
    assert fingerprint({"a": "2", "b": "1"}) != first
    assert fingerprint({"a": "1"}) != first


def test_a_description_is_read_back_and_old_ones_too():
    for quant in (Quant("int4", 64, False, "mse"), Quant("int8", 16), Quant("fp32")):
        assert Quant.from_json(quant.to_json()).to_json() == quant.to_json()
    assert Quant.from_json({"quant": "int4", "block": 128, "device": "pi"}) == Quant("int4", 128)
    assert Quant("int4", 32).but(block=64, rounding=None) == Quant("int4", 64)
    assert str(Quant("int4", 32)) != str(Quant("int4", 32, False))
