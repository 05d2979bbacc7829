"""Safetensors read and written by numpy alone, against the safetensors library and against broken files."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from edgeft.contract.errors import EdgeftError
from edgeft.contract.tensors import MAX_HEADER, TensorFile, Weights, has_weights, write_tensors

KINDS = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16,
         np.uint8, np.bool_]


def some(shape=(3, 4), kind=np.float32, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 40).astype(kind)


def bits_of_bfloat16(values):
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def raw_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(kind, shape, begin, end):
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("kind", KINDS)
def test_our_file_is_read_by_the_library(tmp_path, kind):
    arrays = {"b": some(kind=kind), "a": some((5,), kind, 1), "none": np.zeros((0, 3), kind), "one": some((), kind)}
    write_tensors(tmp_path / "x.safetensors", arrays)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == kind
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("kind", KINDS)
def test_the_librarys_file_is_read_by_us(tmp_path, kind):
    array = some(kind=kind)
    save_file({"x": array, "empty": np.zeros((0, 3), kind)}, tmp_path / "x.safetensors", {"by": "library"})
    file = TensorFile(tmp_path / "x.safetensors")
    wanted = np.float32 if np.dtype(kind).kind == "f" else kind
    assert file["x"].dtype == wanted
    np.testing.assert_array_equal(file["x"], array.astype(wanted))
    assert file["empty"].shape == file.shape("empty") == (0, 3)
    assert bytes(file.raw("x")) == array.tobytes()
    assert file.metadata == {"by": "library"}
    assert len(file) == 2


def test_bfloat16_is_read_as_float32(tmp_path):
    values = np.array([0.0, -0.0, 1.0, -1.5, 3.389531389251535e38, 1e-40, np.inf, -np.inf, np.nan], np.float32)
    bits = bits_of_bfloat16(values)
    header = {"x": entry("BF16", [9], 0, 18)}
    file = TensorFile(raw_file(tmp_path / "x.safetensors", header, bits.tobytes()))
    assert file.dtype("x") == "BF16"
    assert file["x"].dtype == np.float32
    np.testing.assert_array_equal(file["x"].view(np.uint32), bits.astype(np.uint32) << 16)
    assert file["x"][3] == -1.5


def test_bfloat16_of_the_librarys_own_writer(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    tensor = torch.linspace(-3, 3, 12).to(torch.bfloat16).reshape(3, 4)
    save_torch({"x": tensor}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(TensorFile(tmp_path / "x.safetensors")["x"], tensor.float().numpy())


def test_float16_keeps_subnormals_and_infinity(tmp_path):
    values = np.array([6e-8, -6e-8, 65504, np.inf, -0.0], np.float16)
    write_tensors(tmp_path / "x.safetensors", {"x": values})
    np.testing.assert_array_equal(TensorFile(tmp_path / "x.safetensors")["x"], values.astype(np.float32))


def test_order_metadata_and_alignment_are_kept(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"z": some(), "a": some()}, {"näme": "größe", "empty": ""})
    file = TensorFile(path)
    assert list(file) == ["z", "a"]
    assert file.metadata == {"näme": "größe", "empty": ""}
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 64 == 0


def test_a_transposed_array_is_written_as_it_reads(tmp_path):
    array = some((3, 5)).T
    write_tensors(tmp_path / "x.safetensors", {"x": array})
    np.testing.assert_array_equal(TensorFile(tmp_path / "x.safetensors")["x"], array)


def test_a_tensor_that_is_not_there(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"x": some()})
    with pytest.raises(KeyError):
        TensorFile(tmp_path / "x.safetensors")["y"]


def test_every_truncation_is_refused(tmp_path):
    whole = save({"a": some((4, 4)), "b": some((7,), np.float16), "c": some((2, 3), np.int64)})
    path = tmp_path / "x.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(EdgeftError, match=r"x.safetensors"):
            TensorFile(path)
    path.write_bytes(whole)
    assert len(TensorFile(path)) == 3


@pytest.mark.parametrize("length", [0, 1, 3, MAX_HEADER + 1, 1 << 40, (1 << 64) - 1])
def test_header_length_that_cannot_be(tmp_path, length):
    (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b"{}" + bytes(100))
    with pytest.raises(EdgeftError, match=r"cut short|broken safetensors header"):
        TensorFile(tmp_path / "x")


def test_an_empty_header_holds_nothing(tmp_path):
    assert len(TensorFile(raw_file(tmp_path / "x", {}))) == 0


@pytest.mark.parametrize("header", [
    b"not json", b"[]", b'"text"', b"77", b"\xff\xfe{}", b"{" * 5000, b'{"x":1}', b'{"x":[]}', b'{"x":null}',
    {"x": {"dtype": "F32", "shape": [1]}}, {"x": {"shape": [1], "data_offsets": [0, 4]}},
    {"x": entry("F33", [1], 0, 4)}, {"x": entry("f32", [1], 0, 4)}, {"x": entry(None, [1], 0, 4)},
    {"x": entry(["F32"], [1], 0, 4)}, {"x": entry("F32", 1, 0, 4)}, {"x": entry("F32", "1", 0, 4)},
    {"x": entry("F32", [1.0], 0, 4)}, {"x": entry("F32", [True], 0, 4)}, {"x": entry("F32", [-1], 0, 4)},
    {"x": entry("F32", [1], 0, "4")}, {"x": entry("F32", [1], 0, 4.0)},
    {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}},
    {"x": entry("F32", [1 << 70], 0, 4)},
    {"__metadata__": {"a": 1}}, {"__metadata__": {"a": None}}, {"__metadata__": {"a": ["b"]}},
    {"__metadata__": "text"}, {"__metadata__": 3}], ids=lambda header: str(header)[:40])
def test_broken_header(tmp_path, header):
    with pytest.raises(EdgeftError, match="broken safetensors header"):
        TensorFile(raw_file(tmp_path / "x", header, bytes(64)))


@pytest.mark.parametrize("header", [
    {"x": entry("F32", [2], 0, 4)},  # shape wants more than is claimed
    {"x": entry("F32", [2], 0, 16)},  # and less
    {"x": entry("F32", [2], 4, 12)},  # a hole before it
    {"x": entry("F32", [2], 8, 0)},  # ends before it begins
    {"x": entry("F32", [100], 0, 400)},  # beyond the file
    {"x": entry("F32", [1 << 40, 1 << 40], 0, 8)},
    {"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 4, 12)},  # overlap
    {"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 0, 8)},  # the same bytes twice
    {"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 12, 20)},  # a hole between
], ids=str)
def test_offsets_that_the_shapes_or_the_file_deny(tmp_path, header):
    with pytest.raises(EdgeftError, match="claims bytes"):
        TensorFile(raw_file(tmp_path / "x", header, bytes(64)))


def test_offsets_in_any_order_are_read(tmp_path):
    header = {"second": entry("U8", [2], 2, 4), "first": entry("U8", [2], 0, 2)}
    file = TensorFile(raw_file(tmp_path / "x", header, bytes([1, 2, 3, 4])))
    assert file["first"].tolist() == [1, 2]
    assert file["second"].tolist() == [3, 4]


def test_missing_file_and_folder_are_named(tmp_path):
    for path in (tmp_path / "no.safetensors", tmp_path):
        with pytest.raises(EdgeftError, match="cannot be read"):
            TensorFile(path)


# --- model folders


def folder(path, *shards):
    """A model folder with each dict of arrays in a file of its own."""
    path.mkdir()
    if len(shards) == 1:
        save_file(shards[0], path / "model.safetensors")
        return path
    where = {}
    for index, shard in enumerate(shards):
        name = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, path / name)
        where |= dict.fromkeys(shard, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path


A, B, C = some((2, 3)), some((4,), np.float16, 1), some((3, 2), np.float32, 2)


def fingerprint(path, *shards):
    return Weights(folder(path, *shards)).fingerprint()


def test_weights_of_one_file_and_of_shards_are_the_same(tmp_path):
    one, many = Weights(folder(tmp_path / "one", {"a": A, "b": B, "c": C})), \
        Weights(folder(tmp_path / "many", {"c": C}, {"a": A, "b": B}))
    assert set(one) == set(many) == {"a", "b", "c"}
    assert one.parameters == many.parameters == 16
    assert len(many) == 3
    assert many.shape("c") == (3, 2)
    np.testing.assert_array_equal(many["b"], B.astype(np.float32))


def test_fingerprint_ignores_sharding_and_order(tmp_path):
    wanted = fingerprint(tmp_path / "1", {"a": A, "b": B, "c": C})
    assert fingerprint(tmp_path / "2", {"c": C, "a": A}, {"b": B}) == wanted
    assert fingerprint(tmp_path / "3", {"b": B}, {"c": C}, {"a": A}) == wanted
    (tmp_path / "4").mkdir()
    write_tensors(tmp_path / "4" / "model.safetensors", {"c": C, "b": B, "a": A}, {"format": "pt"})
    assert Weights(tmp_path / "4").fingerprint() == wanted


def test_fingerprint_depends_on_every_byte(tmp_path):
    path = folder(tmp_path / "x", {"a": A, "b": B}) / "model.safetensors"
    seen = {Weights(path.parent).fingerprint()}
    whole = path.read_bytes()
    start = len(whole) - A.nbytes - B.nbytes
    for position in range(start, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1:])
        seen.add(Weights(path.parent).fingerprint())
    assert len(seen) == 1 + A.nbytes + B.nbytes


@pytest.mark.parametrize("other", [
    {"a2": A, "b": B}, {"a": A.reshape(3, 2), "b": B}, {"a": A}, {"a": A, "b": B, "c": C[:0]},
    {"a": A.view(np.int32), "b": B}, {"b": A, "a": B}, {"a": A.T.copy(), "b": B}],
    ids=["name", "shape", "fewer", "empty one more", "dtype", "swapped", "transposed"])
def test_fingerprint_depends_on_names_shapes_and_dtypes(tmp_path, other):
    assert fingerprint(tmp_path / "x", {"a": A, "b": B}) != fingerprint(tmp_path / "y", other)


def test_folder_without_weights_and_with_pickled_ones(tmp_path):
    assert not has_weights(tmp_path)
    with pytest.raises(EdgeftError, match=r"holds no model.safetensors$"):
        Weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert has_weights(tmp_path)
    with pytest.raises(EdgeftError, match=r"pickled weights are not opened: pytorch_model.bin"):
        Weights(tmp_path)


def test_index_that_names_files_elsewhere(tmp_path):
    save_file({"a": A}, tmp_path / "outside.safetensors")
    (tmp_path / "x").mkdir()
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (tmp_path / "x" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EdgeftError, match="outside its folder"):
        Weights(tmp_path / "x")


def test_index_that_names_a_missing_shard(tmp_path):
    path = folder(tmp_path / "x", {"a": A}, {"b": B})
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(EdgeftError, match="model-00002-of-00002"):
        Weights(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_broken_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(EdgeftError, match=r"index.json"):
        Weights(tmp_path)


def test_index_and_shards_must_agree(tmp_path):
    path = folder(tmp_path / "x", {"a": A}, {"b": B})
    save_file({"other": B}, path / "model-00002-of-00002.safetensors")
    with pytest.raises(EdgeftError, match=r"'b'"):
        Weights(path)


def test_bytes_that_belong_to_no_tensor(tmp_path):
    (tmp_path / "x").write_bytes(save({"a": A}) + b"more")
    with pytest.raises(EdgeftError):
        TensorFile(tmp_path / "x")
