"""Run folders as training leaves them, and pages as a browser reads them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from edgeft import plugins
from edgeft.report.collect import collect
from edgeft.report.page import render, to_json

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}
WAYS = ("float merged", "merged, then quantized", "quantized base, adapter trained on float", "trained on the grid")


class Page(HTMLParser):
    """A parsed page: its tags, its text, and what does not belong there."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.faults: list[str] = []
        self.text = ""
        self.pictures: list[dict[str, str]] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]
        self.faults += [f"url({found})" for found in re.findall(r"url\(\s*['\"]?([^)]*)|@import", text) if found]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.faults += [f"<{tag} {name}={value}>" for name, value in attrs
                        if name in ("src", "href", "srcset", "data", "action", "xlink:href")
                        and not (value or "").startswith("#")]
        if tag == "svg" and ("role", "img") in attrs:
            self.pictures.append({})
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-2:-1] == ["svg"] and self.open[-1] in ("title", "desc") and self.pictures:
            self.pictures[-1].setdefault(self.open[-1], data)


def write_run(folder: Path, loss: float = 1.0, forgot: float | None = 0.1, text: str = "", steps: int = 40,
              **changes: Any) -> Path:
    """A run folder as training leaves it; `text` is put into every text of it."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    with (folder / "metrics.jsonl").open("w") as stream:
        for step in range(1, steps + 1):
            stream.write(json.dumps({"step": step, "loss": loss + 3 / step}) + "\n")
        stream.write(json.dumps({"step": steps // 2, "eval": {
            "sets": {"valid": {"loss": loss + 0.3, "tokens": 50}}, "held_out": {},
            "probe": {"loss": 1.05, "tokens": 90}}}) + "\n")
    record: dict[str, Any] = {
        "method": f"lora{text}", "base": {"id": f"/models/tiny{text}", "fingerprint": "ab" * 32},
        "tasks": [{"name": f"menu{text}", "data": f"/d/menu.jsonl{text}"}], "eval_data": [f"/d/valid.jsonl{text}"],
        "probe": f"/d/probe.jsonl{text}", "device": "", "options": {"r": 4},
        "settings": {"max_steps": steps, "seed": 3},
        "data": [{"name": f"menu{text}", "path": f"/d/menu.jsonl{text}", "sha256": f"{'cd' * 32}{text}", "examples": 9,
                  "weight": 1.0}],
        "metrics": {"trained_parameters": 1234, "parameters": 98765, "steps": steps, "tokens": 5000, "seconds": 12.5,
                    "tokens_per_s": 400.0, "peak_mib": 321.0, "eval": {f"valid{text}": {"loss": loss, "tokens": 50}},
                    "eval_base": {f"valid{text}": {"loss": 4.0, "tokens": 50}},
                    "held_out": {f"far{text}": {"loss": 2.0, "tokens": 8, "base_loss": 2.5, "change": -0.5}}},
        "forgetting": None if forgot is None else {
            "forgetting": forgot, "interval": [forgot - 0.01, forgot + 0.02], "kl": 0.07,
            "probe": f"/d/probe.jsonl{text}", "tokens": 90, "base_loss": 1.0, "tuned_loss": 1.0 + forgot,
            "own_samples": {"kl": 0.03, "interval": [0.02, 0.04], "tokens": 100, "samples": 4},
            "pairs": {"path": "p", "pairs": 200, "base_accuracy": 0.8, "accuracy": 0.75, "interval": [0.7, 0.8]}},
        "grid": None, "samples": [f"a prompt{text}"], "versions": {"edgeft": f"0.1.0{text}"}}
    (folder / "edgeft.json").write_text(json.dumps({**record, **changes}))
    return folder


def write_comparison(run: Path, losses: tuple[float, ...] = (2.7, 3.2, 3.0, 2.8), text: str = "") -> None:
    rows = [{"way": way + text, "loss": loss, "tokens": 500, "size_mib": 3.5, "decode_tokens_per_s": 900.0,
             "metric": {"name": f"exact{text}", "value": 0.5}} for way, loss in zip(WAYS, losses, strict=True)]
    (run / "comparison.json").write_text(json.dumps({
        "run": str(run), "device": f"cpu{text}", "quant": "int4", "block": 32, "data": f"t.jsonl{text}",
        "made": "2026-11-25", "rows": rows}))


def page_of(*folders: Path) -> str:
    return render(collect(folders), plugins.host().methods)


def data_of(*folders: Path) -> dict[str, Any]:
    return to_json(collect(folders), plugins.host().methods)
