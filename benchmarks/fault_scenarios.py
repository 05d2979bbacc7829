"""The commands that faults.py interrupts: where each begins, what it does, and how to tell the old from the new."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
warnings.simplefilter("ignore")

import mobius  # noqa: E402, F401  imported here once, for all forks
import torch  # noqa: E402
import transformers  # noqa: E402

import edgeft.export.bundle as exporting  # noqa: E402
import edgeft.run.install  # noqa: E402
import edgeft.starter  # noqa: E402
import edgeft.train.loop  # noqa: E402
from edgeft import plugins  # noqa: E402
from edgeft.cli import main as command_line  # noqa: E402
from edgeft.contract.bundle import read_bundle  # noqa: E402
from edgeft.contract.bundle_adapters import remove_adapter  # noqa: E402
from edgeft.contract.errors import UsageError  # noqa: E402
from edgeft.contract.files import read_json, sha256  # noqa: E402
from edgeft.run import signing  # noqa: E402
from edgeft.run.install import install  # noqa: E402
from edgeft.run.install_adapter import install_adapter  # noqa: E402
from edgeft.run.pack import pack  # noqa: E402
from edgeft.run.rollback import previous_of, rollback  # noqa: E402
from edgeft.run.trust import Trust  # noqa: E402
from edgeft.run.verify import verify  # noqa: E402

STEPS, WEIGHTS = 4, "adapter_model.safetensors"


@dataclass(frozen=True)
class Scenario:
    """One command; `again` is what its user would do next to reach the new state."""

    name: str
    begin: Callable[[Path], Any]
    act: Callable[[Path], Any]
    state: Callable[[Path], str]
    retry: Callable[[Path], Any] | None = None

    def again(self, folder: Path) -> None:
        """The same command once more, unless it says otherwise."""
        (self.retry or self.act)(folder)


class Fixtures:
    """A tiny random base, a LoRA on it, two signed versions of a bundle, and keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base, self.run, self.data = folder / "base", folder / "run", folder / "data.jsonl"
        self.old, self.new, self.key = folder / "old", folder / "new", folder / "key"
        self.packed, self.bare, self.menu = (folder / f"{name}.edgeft" for name in ("old", "bare", "menu"))

    def build(self) -> None:
        """Make them all."""
        self.folder.mkdir(parents=True)
        self._base()
        lines = [{"prompt": f"number {index}", "completion": f"answer {index % 3}"} for index in range(12)]
        self.data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.train(self.run)
        signing.new_key(self.key)
        for place, version in ((self.old, 1), (self.new, 2)):
            self.export(place, version)
            signing.sign(place, self.key)
        pack(self.old, self.packed)
        pack(self.old, self.bare, without_adapters=True)
        pack(self.old, self.menu, adapter="menu")

    def _base(self) -> None:
        model = Path(edgeft.starter.__file__).parent / "model"
        self.base.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(model / name, self.base / name)
        stored = read_json(model / "config.json")
        config = transformers.LlamaConfig(
            vocab_size=stored["vocab_size"], hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
            bos_token_id=stored.get("bos_token_id"), eos_token_id=stored.get("eos_token_id"))
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(self.base)

    def train(self, out: Path, *more: str) -> None:
        """Train by the command line's own code."""
        try:
            command_line(["train", "lora", "--base", str(self.base), "--data", str(self.data), "--out", str(out),
                          "--max-steps", str(STEPS), "--save-every", "1", "--keep", "2", "--lr", "0.05", *more])
        except SystemExit as ended:
            if ended.code:
                raise

    def export(self, out: Path, version: int) -> None:
        """Export the LoRA beside its base, as fp32."""
        exporting.export(self.run, plugins.host().device("cpu-x86_64"), out, host=plugins.host(), quant="fp32",
                         name="menu", version=version)

    def proven(self) -> Any:
        """What export's comparison with torch found when the fixtures were made: it writes nothing in a bundle."""
        manifest = read_bundle(self.old).manifest
        parity = json.loads(json.dumps(manifest["parity"]).replace('"menu"', '"more"'))
        return mock.patch.object(exporting, "prove_any", lambda job, *_: (
            parity if job.name == "more" else manifest["parity"], manifest["memory"]["verified_peak_mib"]))


def scenarios(fixtures: Fixtures) -> Iterator[Scenario]:
    """Every command that writes."""
    yield from _bundles(fixtures)
    yield from _places(fixtures)
    yield from _trainings(fixtures)
    yield Scenario("naive", lambda folder: _naive(folder, 1), lambda folder: _naive(folder, 2), _naive_state)


def _bundles(fixtures: Fixtures) -> Iterator[Scenario]:
    def copy(folder: Path) -> None:
        shutil.copytree(fixtures.old, folder / "bundle")

    def export(folder: Path) -> None:
        with fixtures.proven():
            fixtures.export(folder / "bundle", 1)

    def add(folder: Path) -> None:
        with fixtures.proven():
            exporting.add(folder / "bundle", fixtures.run, "more", host=plugins.host(), base=str(fixtures.base))

    def remove(folder: Path) -> None:
        remove_adapter(folder / "bundle", "menu")

    def adapters(wanted: dict[str, str]) -> Callable[[Path], str]:
        return lambda folder: wanted.get(",".join(verify(folder / "bundle")["adapters"]), "other")

    def exported(folder: Path) -> str:
        return ("new" if verify(folder / "bundle")["replayed"] else "other") if (folder / "bundle").exists() else "old"

    def signed(folder: Path) -> str:
        verify(folder / "bundle")
        path = folder / "bundle" / "bundle.sig"
        return "new" if sha256(path) != sha256(fixtures.old / "bundle.sig") else "old"

    other = fixtures.folder / "other-key"

    def sign(folder: Path) -> None:
        if not other.exists():
            signing.new_key(other)
        signing.sign(folder / "bundle", other)

    def pack_it(folder: Path) -> None:
        pack(fixtures.old, folder / "one.edgeft")

    def packed(folder: Path) -> str:
        file = folder / "one.edgeft"
        if not file.exists():
            return "old"
        return "new" if sha256(file) == sha256(fixtures.packed) else "other"

    added, removed = adapters({"menu": "old", "menu,more": "new"}), adapters({"menu": "old", "": "new"})
    yield Scenario("export", lambda _: None, export, exported, _once(export, exported))
    yield Scenario("add", copy, add, added, _once(add, added))
    yield Scenario("remove", copy, remove, removed, _once(remove, removed))
    yield Scenario("sign", copy, sign, signed)
    yield Scenario("pack", lambda _: None, pack_it, packed, _once(pack_it, packed))


def _once(act: Callable[[Path], Any], state: Callable[[Path], str]) -> Callable[[Path], None]:
    """The command once more, which may say that there is nothing left to do if that is so."""
    def again(folder: Path) -> None:
        ended = state(folder) == "new"
        try:
            act(folder)
        except UsageError:
            assert ended, "it was refused, and there was something left to do"

    return again


def _places(fixtures: Fixtures) -> Iterator[Scenario]:
    trust = Trust((fixtures.key.with_name("key.pub"),), True)

    def place(folder: Path) -> Path:
        return folder / "place"

    def state(folder: Path) -> str:
        if not place(folder).exists():
            return "old"
        verify(place(folder))
        previous = previous_of(place(folder))
        if previous.exists():
            verify(previous)
        return {1: "old", 2: "new"}[read_bundle(place(folder)).version]

    def first(folder: Path) -> None:
        install(fixtures.new, place(folder), trust)

    def old(folder: Path) -> None:
        install(fixtures.old, place(folder), trust)

    def both(folder: Path) -> None:
        old(folder)
        first(folder)

    def bare(folder: Path) -> None:
        install(fixtures.bare, place(folder), trust)

    def menu(folder: Path) -> None:
        install_adapter(fixtures.menu, place(folder))

    def has_menu(folder: Path) -> str:
        return "new" if "menu" in verify(place(folder))["adapters"] else "old"

    def backward(folder: Path) -> str:
        return {"old": "new", "new": "old"}[state(folder)]

    def back(folder: Path) -> None:
        if state(folder) == "new":
            rollback(place(folder))

    def update_again(folder: Path) -> None:
        first(folder)
        assert read_bundle(previous_of(place(folder))).version == 1, "the previous version is lost"

    yield Scenario("install", lambda _: None, first, state)
    yield Scenario("install again", _made_once(fixtures.folder / "installed", old), first, state, update_again)
    yield Scenario("install adapter", _made_once(fixtures.folder / "bare", bare), menu, has_menu)
    yield Scenario("rollback", _made_once(fixtures.folder / "updated", both), back, backward)
    yield Scenario("install in place", lambda folder: shutil.copytree(fixtures.new, place(folder)),
                   lambda folder: install(place(folder)),
                   lambda folder: "new" if (verify(place(folder)) and (place(folder) / "prepared").exists()) else "old")


def _made_once(kept: Path, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """A start that is made once, in a fork of its own, and copied for every point."""
    def begin(folder: Path) -> None:
        if not kept.exists():
            child = os.fork()
            if not child:
                code = 1
                try:
                    make(kept)
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(child, 0)[1] == 0, f"{kept.name}: cannot be made"
        shutil.copytree(kept, folder, dirs_exist_ok=True)

    return begin


def _trainings(fixtures: Fixtures) -> Iterator[Scenario]:
    def train(folder: Path) -> None:
        fixtures.train(folder / "run")

    def state(folder: Path) -> str:
        if not (folder / "run" / "edgeft.json").exists():
            return "old"
        read_json(folder / "run" / "adapter_config.json")
        assert sha256(folder / "run" / WEIGHTS) == sha256(fixtures.run / WEIGHTS), "not as trained in one go"
        return "new"

    def resume(folder: Path) -> None:
        ended, code = state(folder) == "new", 0
        try:
            fixtures.train(folder / "run", *(["--resume"] if (folder / "run").exists() else []))
        except SystemExit as refused:
            code = int(str(refused.code))
        assert code == (2 if ended else 0), "an ended run says that nothing is left to do, and no other does"
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        assert {json.loads(line)["step"] for line in lines} == set(range(1, STEPS + 1)), "metrics.jsonl is cut"

    yield Scenario("train", lambda _: None, train, state, resume)


def _naive(folder: Path, version: int) -> None:
    """What no command of ours does: two files written over the old ones. faults.py must find it bad."""
    for name in ("one", "two"):
        (folder / name).write_text(json.dumps({"version": version}))


def _naive_state(folder: Path) -> str:
    versions = {json.loads((folder / name).read_text())["version"] for name in ("one", "two")}
    return {(1,): "old", (2,): "new"}.get(tuple(versions), "between")
