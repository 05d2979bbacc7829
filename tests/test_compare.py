"""`edgeft eval --compare`: four ways of one run, the twin that is trained anew, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from edgeft import plugins
from edgeft.cli import main
from edgeft.compare import BESIDE, FLOAT, ON_GRID, ROUNDED, WAYS, describe, recovered
from edgeft.contract.artifact import read_artifact
from edgeft.contract.tensors import TensorFile
from edgeft.twin import same_grid, twin_of
from tests.conftest import lines, pairs, train_run


def weights(run: Path) -> dict[str, Any]:
    file = TensorFile(run / "adapter_model.safetensors")
    return {name: np.array(file[name]) for name in file}


def equal(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def compare(run: Path, *words: object, code: int = 0) -> None:
    """The command, in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(run), "--compare", *map(str, words)])
    assert ended.value.code == code


def fails(capsys: pytest.CaptureFixture[str], code: int, run: Path, *words: object) -> str:
    capsys.readouterr()
    compare(run, *words, code=code)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.partition("edgeft: ")[2]


@pytest.fixture
def run(tmp_path: Path, lora_run: Path) -> Path:
    """A run of this test's own, on float."""
    return Path(shutil.copytree(lora_run, tmp_path / "colors"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, lora_run: Path, data: Path) -> Path:
    """A run on float, compared, with its chart."""
    folder = tmp_path_factory.mktemp("compared")
    run = Path(shutil.copytree(lora_run, folder / "colors"))
    compare(run, "--data", data, "--device", "cpu-x86_64", "--answers", 20, "--chart", folder / "c.svg")
    return run


def test_a_run_on_float_is_compared_four_ways(compared: Path, data: Path) -> None:
    found = json.loads((compared / "comparison.json").read_text())
    assert [row["way"] for row in found["rows"]] == list(WAYS)
    assert found["impossible"] == {}
    assert (found["device"], found["quant"], found["block"]) == ("cpu-x86_64", "int4", 128)
    assert (found["run"], found["data"]) == (str(compared.resolve()), str(data.resolve()))
    rows = {row["way"]: row for row in found["rows"]}
    assert len({row["tokens"] for row in rows.values()}) == 1
    assert len({row["loss"] for row in rows.values()}) == 4
    assert all(row["decode_tokens_per_s"] > 0 and row["metric"]["name"] == "exact match" for row in rows.values())
    assert all(row["metric"]["value"] < 0.5 for row in rows.values())  # it has learned too little to answer
    assert rows[ROUNDED]["size_mib"] < rows[FLOAT]["size_mib"]
    assert rows[BESIDE]["size_mib"] == rows[ON_GRID]["size_mib"]  # each with its own adapter alone
    assert found["recovered"] == recovered(rows)
    chart = ElementTree.parse(compared.parent / "c.svg").getroot()
    drawn = [item for item in chart.iter("{http://www.w3.org/2000/svg}rect") if "bar" in item.get("class", "")]
    assert len(drawn) == 16


def test_the_ways_are_what_train_and_export_make_of_them(compared: Path, data: Path, tmp_path: Path) -> None:
    """The twin is the run that `train --device` makes, and its loss that of `eval` on the bundle."""
    from edgeft.run.evaluate import evaluate
    from tests.conftest import export_bundle

    base = json.loads((compared / "edgeft.json").read_text())["base"]["id"]
    on_grid = train_run(tmp_path / "grid", base, data, "--epochs", 12, "--lr", 0.03, "--batch-size", 8, "--device",
                        "cpu-x86_64")
    (twin,) = [path for path in (compared.parent / "colors.twins").iterdir() if path.name.startswith("int4-128")]
    assert equal(twin, on_grid)
    assert not equal(twin, compared)
    rows = {row["way"]: row for row in json.loads((compared / "comparison.json").read_text())["rows"]}
    bundle = export_bundle(tmp_path / "bundle", on_grid)
    assert rows[ON_GRID]["loss"] == pytest.approx(evaluate(bundle, data, None, None)["loss"], abs=1e-6)
    assert rows[BESIDE]["loss"] != pytest.approx(rows[ON_GRID]["loss"], abs=1e-6)


def test_a_run_on_the_grid_has_a_float_twin(lora_run: Path, base: Path, data: Path, tmp_path: Path) -> None:
    device, host = plugins.host().device("cpu-x86_64"), plugins.host()
    run = train_run(tmp_path / "run", base, data, "--epochs", 12, "--lr", 0.03, "--batch-size", 8, "--device",
                    "cpu-x86_64")
    artifact = read_artifact(run)
    assert twin_of(artifact, device, tmp_path / "work", host) == run
    made = twin_of(artifact, None, tmp_path / "work", host)
    assert made != run
    assert equal(made, lora_run)
    before = (made / "adapter_model.safetensors").stat().st_mtime_ns
    assert twin_of(artifact, None, tmp_path / "work", host) == made
    assert (made / "adapter_model.safetensors").stat().st_mtime_ns == before, "it was trained again"


def test_a_twin_has_the_runs_own_settings(base: Path, tmp_path: Path) -> None:
    """Evaluation data keep lines from being held out; several tasks keep their order and weights."""
    one, two = lines(tmp_path / "one.jsonl", pairs(40)), lines(tmp_path / "two.jsonl", pairs(40, 40))
    words = ["--data", f"{two}:0.5", "--max-steps", 4, "--seed", 3, "--eval-data", two, "--probe", lines(
        tmp_path / "probe.jsonl", [{"text": "the red cat"}]), "--template", "two=say {prompt}"]
    run = train_run(tmp_path / "run", base, one, *words)
    on_grid = train_run(tmp_path / "grid", base, one, *words, "--device", "cpu-x86_64")
    twin = twin_of(read_artifact(on_grid), None, tmp_path / "work", plugins.host())
    assert equal(twin, run)
    assert not equal(twin, on_grid)
    other = train_run(tmp_path / "other", base, one, "--max-steps", 4, "--seed", 3, "--device", "cpu-x86_64")
    assert twin_of(read_artifact(other), None, tmp_path / "work", plugins.host()) != twin


def test_full_tuning_and_soft_prompts_lack_ways_by_name(tmp_path: Path, base: Path, data: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    full = train_run(tmp_path / "full", base, data, "--epochs", 40, "--lr", 0.01, "--batch-size", 8, method="full")
    compare(full, "--data", data, "--device", "cpu-x86_64", "--answers", 20)
    found = json.loads((full / "comparison.json").read_text())
    assert [row["way"] for row in found["rows"]] == [FLOAT, ROUNDED]
    assert list(found["impossible"]) == [BESIDE, ON_GRID]
    assert found["recovered"] is None
    assert found["rows"][0]["metric"]["value"] > 0.5
    assert f"{ON_GRID}: impossible (full: changes the base's own weights" in capsys.readouterr().out
    soft = train_run(tmp_path / "soft", base, data, "--max-steps", 4, method="prompt_tuning")
    compare(soft, "--data", data, "--device", "cpu-x86_64", "--answers", 0)
    found = json.loads((soft / "comparison.json").read_text())
    assert [row["way"] for row in found["rows"]] == [BESIDE, ON_GRID]
    assert all(row["metric"] is None for row in found["rows"])
    assert "a soft prompt cannot be folded into weights" in found["impossible"][ROUNDED]
    assert "impossible (" in capsys.readouterr().out


def test_what_is_recovered() -> None:
    def rows(best: float, lossy: float, ours: float) -> dict[str, Any]:
        return {way: {"way": way, "loss": loss} for way, loss in ((FLOAT, best), (ROUNDED, lossy), (ON_GRID, ours))}

    assert recovered(rows(1.0, 2.0, 1.25)) == 0.75
    assert recovered(rows(1.0, 2.0, 0.5)) == 1.5
    assert recovered(rows(1.0, 2.0, 3.0)) == -1
    assert recovered(rows(1.0, 1.0, 0.5)) is None
    assert recovered({way: row for way, row in rows(1.0, 2.0, 1.0).items() if way != FLOAT}) is None


def test_losing_nothing_is_said() -> None:
    row = {"tokens": 5, "metric": None, "size_mib": 1.0, "decode_tokens_per_s": 2.0}
    found = {"device": "d", "quant": "int8", "block": 32, "data": "x", "impossible": {}, "recovered": None,
             "rows": [{**row, "way": way, "loss": 1.0} for way in WAYS]}
    assert "loses nothing here (+0.0000 nats)" in describe(found)


def test_grids_are_the_same_whatever_their_names() -> None:
    one = {"device": "a", "quant": "int4", "block": 32}
    assert same_grid(one, {**one, "device": "b"})
    assert same_grid(None, None)
    assert not same_grid(one, None)
    assert not same_grid(one, {**one, "block": 64})
    assert not same_grid({**one, "symmetric": True}, {**one, "symmetric": False})


# --- what is refused


def test_data_that_changed_or_went_away(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, test = lines(tmp_path / "task.jsonl", pairs(20)), lines(tmp_path / "test.jsonl", pairs(5))
    run = train_run(tmp_path / "run", base, task, "--max-steps", 2, "--device", "cpu-x86_64")
    lines(task, pairs(21))
    said = fails(capsys, 1, run, "--data", test, "--device", "cpu-x86_64")
    assert "run: cannot be trained anew" in said
    assert f"{task}  declared sha256" in said
    task.unlink()
    assert f"{task}: is not there any more" in fails(capsys, 1, run, "--data", test, "--device", "cpu-x86_64")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "test.jsonl"]
    lines(task, pairs(20))
    compare(run, "--data", test, "--device", "cpu-x86_64", "--answers", 0)


def test_a_base_that_changed_or_went_away(make_base: Callable[..., Path], data: Path, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    base = Path(shutil.copytree(make_base(), tmp_path / "base"))
    run = train_run(tmp_path / "run", base, data, "--max-steps", 2)
    other = make_base(seed=1)
    shutil.copy(other / "model.safetensors", base / "model.safetensors")
    said = fails(capsys, 1, run, "--data", data, "--device", "cpu-x86_64")
    assert "was changed since it was trained" in said
    assert "base fingerprint  declared" in said
    shutil.rmtree(base)
    assert "there is no such folder" in fails(capsys, 2, run, "--data", data, "--device", "cpu-x86_64")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_device_of_floats_and_a_bundle(run: Path, bundle: Path, data: Path, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).resolve().parents[1]
    device = tmp_path / "floats.toml"
    device.write_text((root / "devices" / "cpu-x86_64.toml").read_text().replace('"int4"', '"fp32"'))
    said = fails(capsys, 2, run, "--data", data, "--device", device)
    assert "floats: runs fp32, so there is no grid that anything could lose on" in said
    assert "is a bundle, and --compare makes bundles of a run" in fails(capsys, 2, bundle, "--data", data, "--device",
                                                                       "cpu-x86_64")


@pytest.mark.parametrize(("words", "said"), [
    ([], "--compare needs --device, the grid"), (["--device", "cpu-x86"], "Did you mean 'cpu-x86_64'"),
    (["--device", "cpu-x86_64", "--probe", "p.jsonl"], "--probe is not for --compare"),
    (["--device", "cpu-x86_64", "--adapter", "x"], "--adapter is not for --compare"),
    (["--device", "cpu-x86_64", "--out", "nowhere/c.json"], "must be a file in a folder that is there"),
    (["--device", "cpu-x86_64", "--chart", "nowhere/c.svg"], "must be a file in a folder that is there"),
    (["--device", "cpu-x86_64", "--data", "nowhere.jsonl"], "nowhere.jsonl: cannot be read")])
def test_words_that_are_off(run: Path, data: Path, words: list[str], said: str,
                            capsys: pytest.CaptureFixture[str]) -> None:
    assert said in fails(capsys, 2, run, "--data", data, *words)


def test_its_words_without_it(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(run), "--data", str(data), "--answers", "3"])
    assert ended.value.code == 2
    assert "--answers is for --compare" in capsys.readouterr().err
