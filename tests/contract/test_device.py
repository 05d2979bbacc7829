"""Device files: every one of ours reads, every fault of a wrong one is named."""

from pathlib import Path

import pytest

from edgeft.contract.device import read_device
from edgeft.contract.errors import EdgeftError
from edgeft.contract.grid import Quant
from edgeft.contract.rounding import ROUNDINGS

FILES = sorted((Path(__file__).parents[2] / "devices").glob("*.toml"))
GOOD = """summary = "A board"
verified = "checked"
[limits]
memory_mib = 4096
budget_mib = 2048
bandwidth_gb_s = 4
[cpu]
arch = "aarch64"
isa = ["neon"]
threads = 4
[graph]
quant = "int4"
block = 128
context = 1024
"""


def write(path, text=GOOD, *changes):
    """The good file with (old, new) replacements, each of which must apply."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = path / "board.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path):
    with pytest.raises(EdgeftError) as caught:
        read_device(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_of_ours_reads(path):
    device = read_device(path)
    assert device.name == path.stem
    assert device.summary
    assert device.sources, "each figure says where it comes from"
    assert 0 < device.limits.budget_mib <= device.limits.memory_mib
    assert device.graph.quant in device.quants()


def test_there_are_files_of_ours():
    assert len(FILES) >= 14


def test_a_good_file_and_its_defaults(tmp_path):
    device = read_device(write(tmp_path))
    assert device.name == "board"
    assert device.run.provider == "CPUExecutionProvider"
    assert (device.graph.shapes, device.graph.slots, device.sources) == ("dynamic", ["lowrank"], [])
    assert device.limits.bandwidth_gb_s == 4


def test_sources_may_end_the_file(tmp_path):
    assert read_device(write(tmp_path, GOOD + 'sources = ["a", "b"]\n')).sources == ["a", "b"]


@pytest.mark.parametrize(("old", "new", "said"), [
    ("summary", "sumary", "'summary'"),
    ("budget_mib", "budget_mb", "limits.budget_mb: unknown key. Did you mean 'budget_mib'"),
    ("[graph]", "[grph]", "grph: unknown key. Did you mean 'graph'"),
    ("context", "contxt", "graph.contxt: unknown key. Did you mean 'context'"),
    ("threads = 4", "threads = 4\nhertz = 1", "cpu.hertz: unknown key")])
def test_unknown_key_with_a_suggestion(tmp_path, old, new, said):
    message = refusal(write(tmp_path, GOOD, (old, new)))
    assert "unknown key" in message
    assert said in message


@pytest.mark.parametrize(("line", "key"), [
    ('summary = "A board"\n', "summary"), ('verified = "checked"\n', "verified"),
    ("memory_mib = 4096\n", "limits.memory_mib"), ("budget_mib = 2048\n", "limits.budget_mib"),
    ("bandwidth_gb_s = 4\n", "limits.bandwidth_gb_s"), ('arch = "aarch64"\n', "cpu.arch"),
    ('isa = ["neon"]\n', "cpu.isa"), ("threads = 4\n", "cpu.threads"), ('quant = "int4"\n', "graph.quant"),
    ("block = 128\n", "graph.block"), ("context = 1024\n", "graph.context")])
def test_missing_key(tmp_path, line, key):
    assert f"  {key}: missing" in refusal(write(tmp_path, GOOD, (line, "")))


@pytest.mark.parametrize(("old", "new", "key"), [
    ('"A board"', "3", "summary"), ('"checked"', '"believed"', "verified"), ("4096", '"4096"', "limits.memory_mib"),
    ("4096", "4096.5", "limits.memory_mib"), ("2048", "-1", "limits.budget_mib"), ("2048", "0", "limits.budget_mib"),
    ("2048", "true", "limits.budget_mib"), ("_s = 4", "_s = nan", "limits.bandwidth_gb_s"),
    ('["neon"]', '"neon"', "cpu.isa"), ('["neon"]', "[1]", "cpu.isa"),
    ("threads = 4", "threads = false", "cpu.threads"),
    ('"int4"', '"int3"', "graph.quant"), ("1024", "1e3", "graph.context"),
    ("[graph]", "[run]\noptions = {a = 1}\n[graph]", "run.options"),
    ("context", 'shapes = "both"\ncontext', "graph.shapes"), ("context", "slots = [1]\ncontext", "graph.slots")])
def test_wrong_type_or_value(tmp_path, old, new, key):
    message = refusal(write(tmp_path, GOOD, (old, new)))
    assert f"  {key}  declared" in message
    assert "must be" in message


@pytest.mark.parametrize("block", [1, 8, 24, 100, 512])
def test_block_that_no_kernel_takes(tmp_path, block):
    assert f"graph.block  declared {block}" in refusal(write(tmp_path, GOOD, ("128", str(block))))


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_block_that_a_kernel_takes(tmp_path, block):
    assert read_device(write(tmp_path, GOOD, ("128", str(block)))).graph.block == block


def test_budget_above_the_memory(tmp_path):
    message = refusal(write(tmp_path, GOOD, ("2048", "5000")))
    assert "limits.budget_mib  declared 5000" in message
    assert "4096" in message


def test_all_faults_at_once(tmp_path):
    message = refusal(write(tmp_path, GOOD, ('summary = "A board"\n', ""), ("4096", '"x"'), ("threads", "treads"),
                            ('"int4"', '"int3"')))
    for key in ("summary", "limits.memory_mib", "cpu.treads", "cpu.threads", "graph.quant"):
        assert key in message


def test_values_that_do_not_go_together_are_listed_beside_a_missing_key(tmp_path):
    message = refusal(write(tmp_path, GOOD, ('summary = "A board"\n', ""), ("128", "100")))
    assert "summary" in message
    assert "graph.block" in message


@pytest.mark.parametrize("table", ["limits", "cpu", "graph", "run"])
def test_table_that_is_no_table(tmp_path, table):
    head = GOOD.split("[")[0]
    rest = [f"[{part}" for part in GOOD.split("\n[")[1:] if not part.startswith(table)]
    assert table in refusal(write(tmp_path, "\n".join([head, f"{table} = 5", *rest])))


@pytest.mark.parametrize("text", ["summary = ", "[limits", "a = 1\na = 2", "\x00"])
def test_what_is_not_toml(tmp_path, text):
    assert "is not TOML" in refusal(write(tmp_path, text))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "board.toml").write_bytes(b"summary = '\xff'")
    assert "is not TOML" in refusal(tmp_path / "board.toml")


def test_a_file_that_is_not_there(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "none.toml")


def test_the_file_names_the_device(tmp_path):
    assert "name" in refusal(write(tmp_path, 'name = "other"\n' + GOOD))


def test_slots_that_no_graph_has(tmp_path):
    assert "graph.slots" in refusal(write(tmp_path, GOOD, ("context", 'slots = ["lowrnk"]\ncontext')))


def test_fp16_only_where_something_computes_in_it(tmp_path):
    assert read_device(write(tmp_path)).quants() == ["fp32", "int8", "int4"]
    with_fp16 = ("fp32", "fp16", "int8", "int4")
    assert read_device(write(tmp_path, GOOD, ('"neon"', '"neon", "fp16"'))).quants() == [*with_fp16]
    accelerated = write(tmp_path, GOOD, ("[graph]", '[run]\nprovider = "QNNExecutionProvider"\n[graph]'))
    assert read_device(accelerated).quants() == [*with_fp16]


def test_a_file_may_name_an_asymmetric_grid_and_its_rounding(tmp_path):
    graph = read_device(write(tmp_path)).graph
    assert graph.grid() == Quant("int4", 128)
    graph = read_device(write(tmp_path, GOOD, ("block = 128", 'block = 64\nsymmetric = false\nrounding = "mse"'))).graph
    assert graph.grid() == Quant("int4", 64, False, "mse")
    assert graph.grid("int8") == Quant("int8", 64, False, "mse")
    for rounding in ROUNDINGS:
        text = GOOD.replace("block = 128", f'block = 64\nrounding = "{rounding}"')
        assert read_device(write(tmp_path, text)).graph.rounding == rounding
    said = refusal(write(tmp_path, GOOD, ("block = 128", 'block = 64\nsymmetric = "no"\nrounding = "best"')))
    assert "graph.symmetric  declared 'no'" in said
    assert "'rtn' or 'mse'" in said
