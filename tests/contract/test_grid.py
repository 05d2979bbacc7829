"""The grid is ONNX Runtime's own, bit for bit."""

import numpy as np
import pytest
from onnxruntime.capi import _pybind_state as ort

from edgeft.contract.grid import CHUNK, Grid, pack, quantize, unpack

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
    if kind == "heavy":
        made **= 5
    return made


def ort_grid(weight, bits, block):
    rows, inside = weight.shape
    blocks = -(-inside // block)
    codes = np.zeros((rows, blocks, block * bits // 8), np.uint8)
    scales = np.zeros(rows * blocks, np.float32)
    zeros = np.zeros(rows * (-(-blocks * bits // 8)), np.uint8)
    call = ort.quantize_matmul_4bits if bits == 4 else ort.quantize_matmul_8bits
    padded = np.zeros((inside + 1, rows), np.float32)  # for an odd width the 4-bit kernel reads one row too far
    padded[:inside] = weight.T
    call(codes, padded[:inside], scales, zeros, block, rows, inside, True)
    return known(codes, bits, inside), scales.reshape(rows, blocks)


def known(codes, bits, inside):
    """Codes without the one that no weight stands for: what the kernel read too far, in half a byte of padding."""
    codes = codes.copy()
    if bits == 4 and inside % 2:
        codes.reshape(len(codes), -1)[:, inside // 2] &= 15
    return codes


@pytest.mark.parametrize("kind", ["normal", "ties", "near ties", "tiny", "heavy"])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_and_scales_are_onnxruntimes(bits, block, kind):
    for seed, shape in enumerate(SHAPES):
        weight = weights(shape, seed, kind)
        ours, (codes, scales) = quantize(weight, bits, block), ort_grid(weight, bits, block)
        np.testing.assert_array_equal(ours.scales.view(np.uint32), scales.view(np.uint32), err_msg=str(shape))
        np.testing.assert_array_equal(known(ours.codes, bits, shape[1]), codes, err_msg=str(shape))


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
    codes, _ = ort_grid(np.zeros((3, 40), np.float32), bits, 16)
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
