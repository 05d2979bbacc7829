"""What all the checks of a stranger's bundle cost when it is loaded.

    python benchmarks/load_checks.py
    python benchmarks/load_checks.py --bundle BUNDLE          one that is there already

Makes a model with ../shared/bench/make_model.py and exports it. Then, in turn and each in a process of its own, the
bundle is loaded with all checks and with none: no digest, no walk over the graph, no seal, no look at the tokenizer,
and the graph opened by its name.

    load         load(bundle) in a new process: what it imports, and all up to a model that can be asked
    again        a second load in that process, where nothing is left to import
    first token  of a short prompt after the first load; prepared weights are hashed by then too

Then what each check takes by itself, in one process: medians of ten.

The bound is 10 % of `load`, on the bundle as it was exported and after `edgeft install`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import EDGEFT, SHARED, arguments, child, machine, medians, need, run, say, start, table, verdict, workspace

BOUND = 0.10


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--maker", type=Path, default=SHARED / "bench" / "make_model.py")
    parser.add_argument("--shape", default="135m", choices=["tiny", "135m", "360m"])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(*args.child)))
        return
    with workspace(args) as work:
        plain = work / "plain"
        if args.bundle is not None:
            shutil.copytree(args.bundle, plain, ignore=shutil.ignore_patterns("prepared"))
        else:
            need(args.maker)
            say(f"making and exporting the {args.shape} model")
            run([sys.executable, args.maker, "--shape", args.shape, "--out", work / "model", "--lora", work / "lora"])
            run(
                [
                    *EDGEFT,
                    "export",
                    work / "lora",
                    "--base",
                    work / "model",
                    "--device",
                    "cpu-x86_64",
                    "--name",
                    "lora",
                    "--out",
                    plain,
                ]
            )
        run([*EDGEFT, "install", plain, "--to", work / "prepared"])
        rows: dict[str, list[dict[str, float]]] = {}
        for turn in range(args.repeats):
            say(f"turn {turn + 1} of {args.repeats}")
            for folder in (plain, work / "prepared"):
                for how in ("checked", "unchecked") if turn % 2 else ("unchecked", "checked"):
                    rows.setdefault(f"{folder.name} {how}", []).append(child(__file__, folder, how))
        parts = child(__file__, plain, "parts")
    found = {name: medians(results) for name, results in rows.items()}
    over = {
        name: found[f"{name} checked"]["load"] / found[f"{name} unchecked"]["load"] - 1
        for name in ("plain", "prepared")
    }
    report = {"benchmark": "load_checks", "machine": machine(), "shape": args.shape, "seconds": found, "overhead": over,
              "parts": parts}
    print(json.dumps(report, indent=2) if args.json else describe(report, args.repeats))
    if max(over.values()) > BOUND:
        sys.exit(1)


def describe(report: dict[str, Any], repeats: int) -> str:
    """The table and what it says."""
    rows = [(name, *(f"{1000 * row[key]:.0f}" for key in ("load", "again", "first")))
            for name, row in report["seconds"].items()]
    said = [f"{name}: the checks take {value:+.1%} of the load time ({verdict(value <= BOUND)}, at most {BOUND:.0%})"
            for name, value in report["overhead"].items()]
    return "\n".join([f"{report['shape']}, medians of {repeats}, ms", "",
                      table(["bundle", "load", "again", "first token"], rows), "",
                      table(["each by itself, ms", ""], [(name, f"{1000 * took:.1f}")
                                                         for name, took in report["parts"].items()]), "", *said])


def measure(bundle: str, how: str) -> dict[str, float]:
    """One bundle, loaded twice, in seconds."""
    if how == "parts":
        return each(Path(bundle))
    started = time.perf_counter()
    import edgeft.run.model  # what load() imports, in both ways before anything is taken out

    imported = time.perf_counter() - started
    if how == "unchecked":
        without_checks()
    found: dict[str, float] = {}
    for key, before in (("load", imported), ("again", 0.0)):
        started = time.perf_counter()
        model = edgeft.run.load(bundle)
        found[key] = before + time.perf_counter() - started
        model.generate("a", adapters={}, max_tokens=1, raw=True)
        found.setdefault("first", before + time.perf_counter() - started)
        del model
    return found


def each(folder: Path) -> dict[str, float]:
    """Seconds of every check by itself, in the median."""
    from edgeft.contract.bundle import read_bundle
    from edgeft.contract.chat import chat_renderer
    from edgeft.run.session import LADDER
    from edgeft.run.tokenizer import read_tokenizer
    from edgeft.run.weights import exported_weights

    bundle = read_bundle(folder)
    first = next(name for name in LADDER if name in bundle.manifest["files"])
    render = chat_renderer("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", {})
    talk = [{"role": "user", "content": "hello"}] * 4
    checks: dict[str, Callable[[], object]] = {
        "bundle.json read and compared": lambda: read_bundle(folder),
        "all files but the weights and adapters hashed": lambda: bundle.check_files(whole=False),
        f"{first} hashed and walked": lambda: bundle.graph(first),
        "tokenizer read and looked at": lambda: read_tokenizer(bundle),
        "weights hashed, beside the opening": lambda: exported_weights(bundle).wait(),
        "a template's process started, beside the opening": lambda: chat_renderer("ok", {}),
        "a template rendered there": lambda: render(talk, True)}
    found = {}
    for name, check in checks.items():
        times = []
        for _ in range(10):
            started = time.perf_counter()
            check()
            times.append(time.perf_counter() - started)
        found[name] = statistics.median(times)
    return found


def without_checks() -> None:
    """Take every check out of this process."""
    import onnxruntime as ort
    from tokenizers import Tokenizer

    from edgeft.contract import manifest
    from edgeft.contract.bundle import Bundle
    from edgeft.run import prepared, session, tokenizer

    class Nothing:
        def __init__(self, *_: Any) -> None: ...

        def start(self) -> None: ...

        def wait(self) -> None: ...

    def by_name(bundle: Bundle, ready: Any, file: str, settings: Any, providers: Any) -> Any:
        folder = bundle.folder
        if ready is not None:
            folder = ready.folder
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return ort.InferenceSession(str(folder / file), settings, providers=providers)

    manifest._check_seal = lambda _path, _data, found: found.pop("digest", None)
    manifest.manifest_faults = lambda _: []
    Bundle.check_files = lambda *_, **__: 0  # type: ignore[method-assign]
    Bundle.read = lambda self, name, limit=0: (self.folder / name).read_bytes()  # type: ignore[method-assign]
    tokenizer.make_tokenizer = lambda data, _: Tokenizer.from_buffer(data)
    prepared._check_files = lambda *_: None
    session.WeightsCheck = Nothing  # type: ignore[assignment,misc]
    session.open_graph = by_name


if __name__ == "__main__":
    start(main)
