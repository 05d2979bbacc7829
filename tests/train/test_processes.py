"""Several processes train as one does: same losses, same weights; one message and no hang when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgeft.contract.data import Example
from edgeft.contract.tensors import TensorFile
from edgeft.train import processes
from edgeft.train.mixture import passes
from tests.conftest import WORDS, lines, train_run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# 7 steps of 5 and a last one of 1, so that a process has nothing to do; lengths and tokens with loss differ widely,
# and a pass takes so little that processes have different numbers of them
OPTIONS = ["--batch-size", 5, "--epochs", 1, "--lr", 0.01, "--tokens-per-pass", 40, "--holdout", 0]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 prompts with completions of 1 to 22 words."""
    records = [{"prompt": f"the {WORDS[index % len(WORDS)]} {'cat ' * (index % 3)}",
                "completion": " ".join(WORDS[: 1 + index * 7 % 22])} for index in range(36)]
    return lines(tmp_path_factory.mktemp("data") / "uneven.jsonl", records)


def command(method: str, base: Path, data: Path, out: Path, *options: object) -> list[str]:
    return ["train", method, *map(str, ("--base", base, "--data", data, "--out", out, *OPTIONS, *options))]


def launch(*words: object, launcher: list[str] = TORCHRUN, folder: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen([*launcher, *map(str, words)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})


def ended(process: subprocess.Popen[str], good: bool = True) -> str:
    """What it said on stderr; it must end within two minutes."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.terminate()  # the launcher ends what it has started
    assert (process.returncode == 0) is good, err
    assert out.count("\nwrote ") == good
    return err


def curve(run: Path) -> list[list[float]]:
    """Loss, gradient norm and learning rate of every step."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[step["loss"], step["grad_norm"], step["lr"]] for step in steps if "loss" in step]


def weights(run: Path) -> dict[str, np.ndarray]:
    file = TensorFile(next(run.glob("*model.safetensors")))
    return {name: np.array(file[name]) for name in file}


def equal(one: Path, other: Path) -> bool:
    """The same loss curve, weights and final loss, but for the order in which floats are added."""
    first, second = weights(one), weights(other)
    records = [json.loads((run / "edgeft.json").read_text()) for run in (one, other)]
    losses = [found["metrics"]["eval"]["uneven"]["loss"] for found in records]
    return (first.keys() == second.keys() and np.allclose(curve(one), curve(other), rtol=1e-4)
            and all(np.allclose(first[name], second[name], rtol=1e-3, atol=1e-4) for name in first)
            and losses[0] == pytest.approx(losses[1], rel=1e-4)
            and records[0]["metrics"]["tokens"] == records[1]["metrics"]["tokens"])


def test_two_processes_train_as_one_does(base: Path, uneven: Path, tmp_path: Path) -> None:
    said = ended(launch("-m", "edgeft", *command("lora", base, uneven, tmp_path / "two", "--eval-data", uneven)))
    alone = train_run(tmp_path / "one", base, uneven, *OPTIONS, "--eval-data", uneven)
    other = train_run(tmp_path / "other", base, uneven, *OPTIONS, "--eval-data", uneven, "--batch-size", 10)
    assert equal(tmp_path / "two", alone)
    assert not np.allclose(np.array(curve(other)[:3])[:, 0], np.array(curve(alone)[:3])[:, 0], rtol=1e-4)
    assert len(curve(tmp_path / "two")) == 8  # only one process writes
    assert said.count("parameters learn") == 1
    assert "in 2 processes" in said
    assert json.loads((tmp_path / "two" / "edgeft.json").read_text())["metrics"]["processes"] == 2


@pytest.mark.slow
def test_a_sharded_full_tuning_equals_a_whole_one_and_resumes_after_a_kill(base: Path, uneven: Path,
                                                                          tmp_path: Path) -> None:
    options = ["--eval-data", uneven, "--epochs", 6, "--save-every", 3, "--gradient-checkpointing"]
    split, later = tmp_path / "split", tmp_path / "later"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                  "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port",
                  str(port)]
    started = launch("-m", "edgeft", *command("full", base, uneven, split, *options, "--shard"), launcher=accelerate)
    deadline = time.monotonic() + 100
    while len(list((split / "checkpoints").glob("step-*"))) < 2 and started.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.01)
    pair = workers(started.pid)
    os.kill(pair[-1], signal.SIGKILL)
    ended(started, good=False)
    assert len(pair) == 2
    assert not any(Path(f"/proc/{process}").exists() for process in pair)
    assert not (split / "edgeft.json").exists(), "the run ended before it could be killed: give it more steps"
    assert {path.suffix for path in (split / "checkpoints").rglob("*") if path.is_file()} == {".safetensors", ".json"}
    shutil.copytree(split, later)

    ended(launch("-m", "edgeft", "train", "full", "--out", split, "--resume"))
    alone = train_run(tmp_path / "alone", base, uneven, *OPTIONS, *options, method="full")
    assert equal_end(split, alone)
    resume_alone(later)
    assert equal_end(later, alone)
    other = train_run(tmp_path / "other", base, uneven, *OPTIONS, *options, "--seed", 1, method="full")
    assert not equal_end(other, alone)


def workers(launcher: int) -> list[int]:
    """The processes that a launcher has started, in order."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True, check=True)
    return sorted(map(int, found.stdout.split()))


def equal_end(one: Path, other: Path) -> bool:
    """The same model in the same files; AdamW lets what the order of additions changes grow from step to step."""
    first, second = weights(one), weights(other)
    return ({path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
            and first.keys() == second.keys()
            and json.loads((one / "config.json").read_text()) == json.loads((other / "config.json").read_text())
            and all(np.allclose(first[name], second[name], atol=5e-3) for name in first))


def resume_alone(run: Path) -> None:
    """In this process alone, from what two have written."""
    from edgeft.cli import main

    with pytest.raises(SystemExit) as done:
        main(["train", "full", "--out", str(run), "--resume"])
    assert done.value.code == 0


def test_what_all_refuse_is_told_once(base: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\nno json\n')
    said = ended(launch("-m", "edgeft", *command("lora", base, bad, tmp_path / "run")), good=False)
    assert said.count("edgeft: ") == 1
    assert "bad.jsonl" in said
    assert "line 2" in said
    assert not (tmp_path / "run").exists()


def test_what_one_has_read_otherwise_ends_all_with_one_message(base: Path, uneven: Path, tmp_path: Path) -> None:
    script = tmp_path / "differ.py"
    texts = uneven.read_text().splitlines(keepends=True)
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "uneven.jsonl").write_text("".join(texts[rank:]))
    script.write_text("import os, sys\nfrom edgeft.cli import main\n"
                      "os.chdir(os.environ['RANK'])\nmain(sys.argv[1:])\n")
    words = command("lora", base, Path("uneven.jsonl"), tmp_path / "run")
    said = ended(launch(script, *words, folder=tmp_path), good=False)
    assert said.count("edgeft: ") == 1
    assert "process 1 of 2: has read" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_hold_every_example_once_in_as_many_passes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    batch = [Example(list(range(2 + index * 5 % 17)), [True] * (2 + index * 5 % 17)) for index in range(7)]
    monkeypatch.setattr(processes, "count", lambda: count)
    for share in (lambda: processes.passes_of(batch, 20), lambda: processes.share_of(passes(batch, 20))):
        found = []
        for rank in range(count):
            monkeypatch.setattr(processes, "index", lambda rank=rank: rank)
            found.append(share())
        assert len({len(own) for own in found}) == 1
        assert all(part for own in found for part, _ in own)
        seen = [id(example) for own in found for part, counts in own if counts for example in part]
        assert sorted(seen) == sorted(map(id, batch))
    monkeypatch.setattr(processes, "index", lambda: 0)
    assert (processes.passes_of(batch, 20) == [(part, 1.0) for part in passes(batch, 20)]) == (count == 1)


def test_without_a_launcher_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (processes.count(), processes.index(), processes.total(1.5, 2.0)) == (1, 0, [1.5, 2.0])
    processes.agree(lambda: pytest.fail("alone there is nothing to compare"))


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_accelerates_own_sharding_is_refused_by_name(variable: str, base: Path, uneven: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    from edgeft.cli import main

    monkeypatch.setenv(variable, "true")
    with pytest.raises(SystemExit) as done:
        main(command("lora", base, uneven, tmp_path / "run"))
    assert done.value.code == 2
    assert "--shard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_shard_in_one_process_says_that_nothing_is_split(base: Path, uneven: Path, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    train_run(tmp_path / "run", base, uneven, *OPTIONS, "--shard", "--max-steps", 1)
    assert "nothing is split" in capsys.readouterr().err
