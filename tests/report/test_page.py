"""What the page says is true, nothing on it reaches outside, and no name of a run is markup."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from edgeft.contract.svg import clean
from edgeft.report import tables
from edgeft.report.collect import collect

from .pages import WAYS, Page, data_of, page_of, write_comparison, write_run


def test_the_page_is_whole_and_reaches_nothing_outside(runs: list[Path]) -> None:
    text = page_of(*runs)
    page = Page(text)
    assert page.faults == []
    assert not page.tags & {"script", "link", "iframe", "object", "img", "base"}
    for wanted in ("sharp", "gentle", "beaten", "tiny", "+0.500", "[+0.490, +0.520]", "0.900", "4.000", "1.23 k", "321",
                   "80.0 % to 75.0 %", "ab" * 32, "cd" * 32, "never trained on", *WAYS, "12.5 s", "a prompt"):
        assert wanted in page.text, wanted
    for picture in page.pictures:
        assert picture["title"]
        assert picture["desc"]
    # training, evaluation, forgetting, the trade and the comparison; each wide and narrow
    assert len(page.pictures) == 2 * 5


def test_the_check_of_pages_sees_what_is_wrong() -> None:
    assert Page("<p><b>x</p></b>").faults
    assert Page("<p>").faults
    assert Page('<img src="https://example.org/x.png">').faults
    assert Page("<style>p { background: url(//example.org/x) }</style>").faults
    assert Page('<a href="#runs">x</a>').faults == []


EVIL = ['<script>alert(1)<\\script>', '"><img src=x onerror=alert(1)>', "' onload='alert(1)", "{{ 7 * 7 }}{% raw %}",
        "]]><svg onload=alert(1)>", "<!--", "&lt;b&gt;", "</title><script>alert(2)</script>"]


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_of_a_file_is_markup(tmp_path: Path, evil: str) -> None:
    name = evil.replace("/", "")
    made = {}
    for kind, text, folder in (("evil", evil, name), ("plain", "harmless", "harmless")):
        run = write_run(tmp_path / kind / folder, text=text)
        write_comparison(run, text=text)
        made[kind] = Page(page_of(run))
    assert made["evil"].faults == []
    assert made["evil"].tags == made["plain"].tags
    assert made["evil"].attributes == made["plain"].attributes
    assert name in made["evil"].text
    assert evil in made["evil"].text
    assert "49" not in re.findall(r"\d+", made["evil"].text.replace("490", ""))


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, control characters and half characters: replaced, and the page can be written."""
    run = write_run(tmp_path / "a\udcffb\x07", text="\ud800\x01")
    page = page_of(run)
    assert page.encode()
    assert "a\ufffdb\ufffd" in page
    assert clean("plain é 日本") == "plain é 日本"
    json.dumps(data_of(run)).encode()


def test_forgetting_that_was_not_measured_is_said(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "with"), write_run(tmp_path / "with out", forgot=None)]
    text = Page(page_of(*runs)).text
    assert "Not in the picture, for want of a measured forgetting: with out" in text
    assert f"edgeft eval '{runs[1]}' --data /d/valid.jsonl --probe /d/probe.jsonl" in text
    assert "for want of" not in Page(page_of(runs[0])).text


def test_own_samples_stand_in_where_there_is_no_probe(tmp_path: Path) -> None:
    own = {"own_samples": {"kl": 0.2, "interval": [0.1, 0.3], "tokens": 10, "samples": 2}}
    (group,) = data_of(write_run(tmp_path / "a", forgetting=own), write_run(tmp_path / "b"))["groups"]
    assert [(trade["measured"], trade["runs"]) for trade in group["pareto"]] == [
        ("on probe.jsonl", ["b"]), ("on the base's own samples", ["a", "b"])]


def test_an_old_run_with_few_keys(tmp_path: Path) -> None:
    run = write_run(tmp_path / "old", forgot=None)
    record = json.loads((run / "edgeft.json").read_text())
    kept = {key: record[key] for key in ("method", "base")}
    (run / "edgeft.json").write_text(json.dumps({**kept, "metrics": {"seconds": 3.0}}))
    (run / "metrics.jsonl").unlink()
    page = Page(page_of(run))
    assert page.faults == []
    for said in ("No evaluation set", "No metrics.jsonl", "Forgetting was not measured", "Parameters that learn"):
        assert said in page.text
    assert "Not measured" in page.text
    complete = Page(page_of(write_run(tmp_path / "new"))).text
    assert "No evaluation set" not in complete
    assert "No metrics.jsonl" not in complete


def test_a_metrics_file_with_a_torn_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "torn")
    before = data_of(run)["runs"][0]["curves"]
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 12, "lo')
    assert data_of(run)["runs"][0]["curves"] == before
    assert "metrics.jsonl has lines that cannot be read" in page_of(run)


def test_of_steps_taken_twice_the_later_count(tmp_path: Path) -> None:
    """As a run leaves it that was killed after its checkpoint and resumed from it."""
    run = write_run(tmp_path / "resumed", steps=10)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 10, "loss": 9.0}) + "\n")
    (found,) = collect([run]).runs
    assert len(found.curve) == 10
    assert found.curve[-1] == (10, 9.0)


def test_replayed_text_is_no_task(tmp_path: Path) -> None:
    sets = {"valid": {"loss": 1.0, "tokens": 50}, "replay": {"loss": 5.0, "tokens": 50}}
    settings = {"replay": "/d/known.jsonl:0.05"}
    runs = [write_run(tmp_path / "plain"), write_run(tmp_path / "replay", metrics={"eval": sets}, settings=settings),
            write_run(tmp_path / "task", metrics={"eval": sets})]
    found = data_of(*runs)
    assert [group["runs"] for group in found["groups"]] == [["plain", "replay"], ["task"]]
    assert [score["loss"] for score in found["runs"][1]["eval"]] == [1.0]


def test_the_comparison_and_what_is_recovered(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_comparison(run)
    assert "training on the grid recovers 80.0 % of what merging and then quantizing loses" in Page(page_of(run)).text
    losses = dict(zip(WAYS, (2.7, 3.2, 3.0, 2.8), strict=True))
    assert tables.recovered(losses, WAYS[2]) == pytest.approx(0.4)
    assert tables.recovered({**losses, WAYS[1]: 2.6}, WAYS[3]) is None  # nothing was lost
    write_comparison(run, (2.7, 2.6, 2.6, 2.6))
    assert "recovers" not in Page(page_of(run)).text


def test_a_bundle_is_matched_to_its_run(lora_run: Path, bundle: Path, tmp_path: Path) -> None:
    found = data_of(lora_run, bundle)
    base, adapter = found["bundles"][0]["subjects"]
    assert (base["kind"], base["run"]) == ("base", None)
    assert (adapter["name"], adapter["run"]) == ("colors", "colors")
    assert adapter["parity"]["greedy_equal"] == adapter["parity"]["prompts"]
    text = Page(page_of(lora_run, bundle)).text
    assert "6 of 6" in text
    assert "The bundle gives every greedy answer that torch gives on the same weights." in text
    assert "not among the runs here" not in text
    assert "not among the runs here" in Page(page_of(write_run(tmp_path / "other"), bundle)).text
    alone = Page(page_of(bundle))
    assert alone.faults == []
    assert "Loss by step" not in alone.text


def test_parity_below_the_bar_is_said(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["parity"]["adapters"]["colors"]["greedy_equal"] = 5
    (copy / "bundle.json").write_text(json.dumps(manifest))
    assert "copy (colors): 5 of 6" in Page(page_of(copy)).text


def test_a_run_that_stopped_early(tmp_path: Path) -> None:
    """What was measured at the end belongs to the last step that was taken, not to the last one planned."""
    run = write_run(tmp_path / "run", steps=30)
    record = json.loads((run / "edgeft.json").read_text())
    record["metrics"] |= {"steps": 100, "processes": 2}
    (run / "edgeft.json").write_text(json.dumps(record))
    assert data_of(run)["runs"][0]["curves"]["evaluation"][-1] == (30, 1.0)
    text = Page(page_of(run)).text
    assert "30 steps" in text
    assert "2: started by torchrun" in text
    (run / "metrics.jsonl").unlink()
    assert "100 steps" in page_of(run)
