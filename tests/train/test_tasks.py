"""What a mixture is made of: flags, TOML tables, and which of them wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeft.contract.errors import UsageError
from edgeft.train.tasks import TaskSpec, resolve_tasks, to_json

ABOUT = "Say: {prompt}"


def read(*layers: dict[str, Any]) -> list[TaskSpec]:
    return resolve_tasks(layers, "train")[0]


def refusal(*layers: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        resolve_tasks(layers, "train")
    return str(caught.value)


def test_flags_and_tables_say_the_same() -> None:
    flags = {"data": ("facts=a.jsonl:2", "b.jsonl"), "template": (f"facts={ABOUT}",),
             "eval_data": ("facts=e.jsonl",), "held_out_task": ("new=c.jsonl",)}
    tables = {"tasks": {"facts": {"data": "a.jsonl", "weight": 2, "template": ABOUT, "eval_data": "e.jsonl"},
                        "b": {"data": "b.jsonl"}, "new": {"data": "c.jsonl", "held_out": True}}}
    wanted = [TaskSpec("facts", "a.jsonl", 2.0, ABOUT, "e.jsonl"), TaskSpec("b", "b.jsonl"),
              TaskSpec("new", "c.jsonl", held_out=True)]
    assert read(flags) == read(tables) == wanted
    assert read({"tasks": to_json(wanted)}) == wanted
    assert to_json(wanted)[1] == {"name": "b", "data": "b.jsonl"}


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    tasks = read({"data": ("x/train.jsonl", "y/train.jsonl"), "held_out_task": ("z/train.jsonl",)})
    assert [task.name for task in tasks] == ["x/train", "y/train", "z/train"]


def test_later_layers_win() -> None:
    config = {"tasks": {"a": {"data": "a.jsonl", "template": ABOUT}, "h": {"data": "h.jsonl", "held_out": True}}}
    assert read(config, {"data": (), "template": ()}) == read(config)
    assert [task.name for task in read(config, {"data": ("b.jsonl",)})] == ["b", "h"]
    assert [task.name for task in read(config, {"held_out_task": ("k.jsonl",)})] == ["a", "k"]
    assert read(config, {"template": ("a=Tell: {prompt}",)})[0].template == "Tell: {prompt}"
    assert read(config, {"template": ("h=Tell: {prompt}",)})[1].template == "Tell: {prompt}"


def test_evaluation_files_of_no_task_stand_apart() -> None:
    tasks, loose = resolve_tasks([{"data": ("a.jsonl",), "eval_data": ("v.jsonl", "a=e.jsonl")}], "train")
    assert loose == ["v.jsonl"]
    assert tasks[0].eval_data == "e.jsonl"


def test_names_of_real_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a=b.jsonl", "c.jsonl:2"):
        (tmp_path / name).touch()
    assert [task.data for task in read({"data": ("n=a=b.jsonl", "c.jsonl:2")})] == ["a=b.jsonl", "c.jsonl:2"]
    assert "without ',' and '='" in refusal({"data": ("a=b.jsonl",)})  # its own name would be no task's


@pytest.mark.parametrize(("layer", "said"), [
    ({"data": ("a.jsonl:0",)}, "the weight must be above 0, found 0"),
    ({"data": ("a.jsonl:nan",)}, "the weight must be above 0"),
    ({"data": ("n=a.jsonl", "n=b.jsonl")}, "two tasks have one name among n, n"),
    ({"data": ("a.jsonl", "./a.jsonl")}, "names one file twice"),
    ({"data": ("a.jsonl",), "held_out_task": ("./a.jsonl",)}, "is in --data and a held-out task"),
    ({"data": ("a.jsonl",), "template": ("b=Say: {prompt}",)}, "--template takes TASK=TEXT, and 'b' is no task"),
    ({"data": ("a.jsonl",), "template": ("Say: {prompt}",)}, "'Say: {prompt}' is no task. Known: a."),
    ({"data": ("a.jsonl",), "template": ("a=Say",)}, "task 'a': the template must hold {prompt} exactly once"),
    ({"tasks": {"a": {"data": "a.jsonl", "wieght": 2}}}, "[tasks.a]: there is no option 'wieght'. Did you mean"),
    ({"tasks": {"a": {}}}, "task 'a': data is missing"),
    ({"tasks": {"a,b": {"data": "a.jsonl"}}}, "without ',' and '='"),
    ({"tasks": {"a": {"data": "a.jsonl", "held_out": True, "weight": 2}}}, "takes neither weight nor eval_data"),
    ({"tasks": {"a": "a.jsonl"}}, "tasks are tables"), ({"tasks": 3}, "tasks are tables"),
    ({"data": 3}, "data must be text or a list of texts, found 3"), ({"data": [3]}, "list of texts"),
], ids=lambda value: str(value)[:50])
def test_what_is_refused(layer: dict[str, Any], said: str) -> None:
    assert said in refusal(layer)
