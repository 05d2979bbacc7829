"""`edgeft report` and the commands that it prints; bad input is one message."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft import cli, plugins
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.report import reproduce
from edgeft.report.collect import collect
from edgeft.report.fields import Fields

from .pages import Page, page_of, write_run

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_makes_the_same_run_again(lora_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Parsed by the command line itself, its words ask for exactly what was recorded."""
    import edgeft.train.loop

    asked: list[Any] = []

    def stop(job: Any, *, resume: bool = False) -> None:
        asked.append(job)
        raise EdgeftError("asked")

    monkeypatch.setattr(edgeft.train.loop, "train", stop)
    monkeypatch.chdir(tmp_path)
    (run,) = collect([lora_run]).runs
    words = reproduce.train_command(run, plugins.host().methods)
    for given in (words, words[: words.index("--epochs")] + words[words.index("--epochs") + 2 :]):
        with pytest.raises(SystemExit):
            cli.main(given[1:])
    recorded = {key: run.record.value[key] for key in ("method", "options", "settings", "eval_data", "probe")}
    same, other = ({key: job.to_json()[key] for key in recorded} for job in asked)
    assert same == recorded
    assert asked[0].to_json()["tasks"] == run.record.value["tasks"]
    assert other != recorded


def test_options_of_another_version_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", settings={"warp": 9, "max_steps": 7, "separator": " => "})
    text = Page(page_of(run)).text
    assert "no option of what is installed here: warp = 9" in text
    assert "--max-steps 7" in text
    assert "--separator ' => '" in text
    assert "--warp" not in text


def test_a_long_command_is_broken_between_options() -> None:
    words = ["edgeft", "train", "lora", *(word for index in range(9) for word in (f"--option-{index}", "some value"))]
    text = reproduce.shown(words, 60)
    assert all(len(line) <= 64 for line in text.splitlines())
    assert len(text.splitlines()) > 3
    whole = "edgeft train lora " + " ".join(f"--option-{index} 'some value'" for index in range(9))
    assert re.sub(r" \\\n +", " ", text) == whole


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """report(code, *arguments) -> (stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(code: int, *arguments: object) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["report", *map(str, arguments)])
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        assert "Traceback" not in said.err
        return said.out, said.err

    return call


def test_the_command_writes_a_page_or_prints_its_data(report: Callable[..., Any], runs: list[Path]) -> None:
    assert report(0, *runs)[0] == "wrote report.html: 3 runs\n"
    assert Page(Path("report.html").read_text()).faults == []
    out, _ = report(0, *runs, "--json")
    assert [run["run"] for run in json.loads(out)["runs"]] == ["sharp", "gentle", "beaten"]
    report(0, runs[0], "--json", "--out", "deep/er/page.html")
    assert "sharp" in Path("deep/er/page.html").read_text()


def test_bad_input_is_one_message_and_no_page(report: Callable[..., Any], runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "settings.json").write_text("{}")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bundle.json").write_text("{}")
    (tmp_path / "there.html").write_text("mine")
    for code, arguments, said in (
            (2, [], "RUN|BUNDLE"), (2, ["none"], "none: there is no such folder"),
            (2, ["nothing"], "nothing: is neither a run of edgeft"), (2, ["running"], "this training has not ended"),
            (2, ["peft"], "peft: has no record of its training"), (1, ["broken"], "bundle format declared None"),
            (2, [runs[0], runs[0]], f"{runs[0]}: is given twice"),
            (2, [runs[0], "sharp"], "sharp: is given twice, as"),
            (2, [runs[0], "--out", "there.html"], "there.html: already exists"),
            (1, [runs[0], "--out", "there.html/page.html"], "cannot be written")):
        out, err = report(code, *arguments)
        assert said in err
        assert out == ""
        assert not Path("report.html").exists()
    assert (tmp_path / "there.html").read_text() == "mine"


@pytest.mark.parametrize(("change", "said"), [
    ({"metrics": []}, "edgeft.json: metrics must be an object"), ({"method": 3}, "method must be text"),
    ({"metrics": {"seconds": "x"}}, "metrics: seconds must be a number"),
    ({"data": [1]}, "data must be a list of objects"),
    ({"forgetting": {"forgetting": 1, "interval": [1]}}, "interval must be two numbers"),
    ({"metrics": {"steps": 10**400}}, "steps must be at most 1e+18"),
    ({"samples": [1]}, "samples must be a list of texts")])
def test_a_damaged_record_is_told_by_its_place(report: Callable[..., Any], tmp_path: Path, change: dict[str, Any],
                                               said: str) -> None:
    assert said in report(1, write_run(tmp_path / "run", **change))[1]


def test_numbers_that_are_none() -> None:
    fields = Fields("f", {"nan": float("nan"), "flag": True, "none": None})
    assert fields.number("nan") is None
    assert fields.number("none") is None
    with pytest.raises(EdgeftError, match="flag must be a number"):
        fields.number("flag")


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run"):
        collect([tmp_path])


def test_what_the_page_needs_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "edgeft.report" in project["packages"]
    folder = ROOT / "edgeft" / "report"
    shipped = {path for pattern in project["package-data"]["edgeft.report"] for path in folder.glob(pattern)}
    assert shipped == {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    assert len(shipped) == 2


def test_a_source_that_is_no_path(tmp_path: Path, bundle: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["adapters"]["colors"]["source"] = "a\0b"
    (copy / "bundle.json").write_text(json.dumps(manifest))
    assert "a\ufffdb" in page_of(copy)
