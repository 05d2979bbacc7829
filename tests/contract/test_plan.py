"""The prediction's parts against what export writes and the runner makes, and its directions."""

from types import SimpleNamespace

import numpy as np
import pytest

from edgeft.contract.bundle import GRAPH_DATA, read_bundle
from edgeft.contract.device import Cpu, Device, Graph, Limits
from edgeft.contract.grid import Quant
from edgeft.contract.plan import FLOAT, Wish, adapter_bytes, chunk, packed_bytes, plan, stored_bytes
from edgeft.contract.shape import read_shape
from edgeft.contract.speed import speed

FP32, INT8, INT4 = Quant("fp32"), Quant("int8", 64), Quant("int4", 64)


@pytest.fixture(scope="module")
def starter():
    return read_shape("starter")[0]


def device(**limits):
    return Device("board", "A board", "checked", Limits(4096, 2048, **{"bandwidth_gb_s": 10.0, **limits}),
                  Cpu("aarch64", ["neon", "dotprod"], 2), Graph("int4", 64, 1024))


@pytest.mark.parametrize("quant", [INT4, INT8, Quant("int4", 32), Quant("int4", 128)])
@pytest.mark.parametrize("shape", [(48, 96), (5, 130), (7, 64)])
def test_stored_bytes_are_the_grids_own(quant, shape):
    grid = quant.quantize(np.ones(shape, np.float32))
    assert stored_bytes(shape[0] * shape[1], shape[1], quant) == (grid.codes.nbytes, grid.scales.nbytes)


@pytest.mark.parametrize("name", ["bundle", "int4_bundle"])
def test_weights_are_what_export_writes(name, request):
    folder = request.getfixturevalue(name)
    shape, recorded = read_shape(folder)
    written = (folder / GRAPH_DATA).stat().st_size
    assert packed_bytes(shape, recorded.quant) == pytest.approx(written, rel=0.05)


@pytest.mark.parametrize("rank", [1, 16])
def test_adapters_are_packed_as_the_runner_packs_them(bundle, rank):
    from edgeft.run import packing

    groups = [group for group in read_bundle(bundle).slots if "lm_head" not in group.modules]
    ranks = {group.name: rank if group.blocks > 1 else rank * len(group.modules) for group in groups}
    assert adapter_bytes(read_shape(bundle)[0], rank) == packing.size(groups, 1, ranks)


@pytest.mark.parametrize(("kv_heads", "context"), [(3, 512), (5, 2048), (8, 8192), (1, 64)])
def test_prompts_are_cut_as_the_runner_cuts_them(starter, kv_heads, context):
    from edgeft.run.lanes import Lanes

    graphs = SimpleNamespace(layers=[(kv_heads, 64)])
    expected = Lanes.chunk.fget(SimpleNamespace(graphs=graphs, capacity=context))
    assert chunk(SimpleNamespace(kv_heads=kv_heads), context) == min(expected, context)


def test_the_cache_is_the_runners(bundle):
    from edgeft.run import load

    model, (shape, _) = load(bundle), read_shape(bundle)
    lanes = model.lanes([{}], 64)
    assert plan(shape, Wish(FP32, 64)).parts["cache"] == lanes.row_bytes(64)
    lanes.close()


def test_a_process_takes_about_what_is_predicted(bundle, tmp_path):
    """Mostly the runtime's own memory at this size; benchmarks/fit.py has the models that weigh something."""
    import json
    import subprocess
    import sys

    ran = subprocess.run([sys.executable, "-m", "edgeft", "run", str(bundle), "--raw", "--prompt", "the red cat " * 20,
                          "--max-tokens", "8", "--json"], capture_output=True, text=True, check=True)
    shape, recorded = read_shape(bundle)
    wish = Wish(recorded.quant, recorded.context, recorded.adapters, recorded.rank, recorded.adapter)
    assert plan(shape, wish).peak_mib == pytest.approx(json.loads(ran.stdout)["peak_rss_mib"], rel=0.25)


def test_more_of_anything_takes_more(starter):
    base = plan(starter, Wish(INT4, 256))
    assert plan(starter, Wish(INT4, 512)).parts["cache"] == 2 * base.parts["cache"]
    weights = [plan(starter, Wish(quant, 256)).parts["weights"] for quant in (INT4, INT8, FP32)]
    assert weights == sorted(set(weights))
    two = plan(starter, Wish(INT4, 256, adapters=2, rank=8))
    assert two.parts["adapters"] == 2 * adapter_bytes(starter, 8)
    assert two.peak_mib > base.peak_mib
    assert plan(starter, Wish(INT4, 256, adapters=3, each=1000)).parts["adapters"] == 3000


def test_installed_bundles_map_their_weights_once_or_twice(starter):
    """With adapters two graphs map them, unless the budget makes the runner sparing."""
    weights = packed_bytes(starter, FP32)
    long = 100_000  # tokens: so that the peak is while it runs, not while it opens
    roomy, tight = (plan(starter, Wish(FP32, long, 1, budget_mib=budget)) for budget in (100_000, 100))
    assert roomy.installed["weights"] - tight.installed["weights"] == weights
    assert plan(starter, Wish(FP32, 256)).installed_mib < plan(starter, Wish(FP32, 256)).peak_mib


def test_speed_follows_bandwidth_compute_and_what_is_read(starter):
    slow, fast = device(), device(bandwidth_gb_s=1000.0)
    wish = Wish(FP32, 256)
    assert speed(starter, wish, fast).decode > speed(starter, wish, slow).decode
    assert speed(starter, Wish(INT4, 256), slow).decode > speed(starter, wish, slow).decode
    assert speed(starter, Wish(INT4, 1024), slow).decode < speed(starter, Wish(INT4, 256), slow).decode
    assert speed(starter, Wish(INT4, 256, 1), slow).decode < speed(starter, Wish(INT4, 256), slow).decode
    strong = device(int8_gops=10_000.0)
    assert speed(starter, wish, strong).prefill > 2 * speed(starter, wish, slow).prefill


def test_decode_is_never_faster_than_the_weights_can_be_read(starter):
    for quant in (FP32, INT8, INT4):
        limit = 10e9 / (packed_bytes(starter, quant) + FLOAT)
        assert speed(starter, Wish(quant, 64), device()).decode < limit
