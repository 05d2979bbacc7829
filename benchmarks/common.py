"""What the benchmarks share: where things lie, processes with their own memory peak, medians, tables."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

SHARED = Path(__file__).resolve().parents[2] / "shared"
STORIES = SHARED / "models" / "stories3m"
E2E = SHARED / "data" / "e2e"
EDGEFT = [sys.executable, "-m", "edgeft"]
POLL_SECONDS = 0.1
SPREAD = 0.35  # of a random adapter's B: large enough that answers tell adapters apart
TIE = 0.05  # of the standard deviation of the logits: how near a second choice must be to pass for the first


def arguments(doc: str) -> argparse.ArgumentParser:
    """A parser with the program's own docstring as help, and --json."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--work", type=Path, help="keep runs and bundles in this new folder (default: a temporary one)")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)  # one measured piece, in a process of its own
    return parser


@contextmanager
def workspace(args: argparse.Namespace) -> Iterator[Path]:
    """The folder that --work names, or a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        yield work


def start(main: Callable[[], None]) -> None:
    """Run a benchmark: no library asks a hub or gives advice, and an interrupt is one line."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        main()
    except KeyboardInterrupt:
        fail("stopped")


def fail(message: str) -> NoReturn:
    """One message, no traceback."""
    sys.exit(f"{Path(sys.argv[0]).name}: {message}")


def need(*paths: Path) -> None:
    """Stop with one message that names everything that is missing."""
    missing = [str(path) for path in paths if not Path(path).exists()]
    if missing:
        fail(f"not there: {', '.join(missing)}. The benchmarks read {SHARED} unless told otherwise (--help).")


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], **options: Any) -> str:
    """Run to the end and return stdout; a failure shows the end of stderr and stops the benchmark."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        _failed(command, done.returncode, done.stderr)
    return done.stdout


def _failed(command: Sequence[str | Path], code: int, stderr: str) -> NoReturn:
    tail = "\n  ".join(stderr.strip().splitlines()[-8:])
    fail(f"`{' '.join(map(str, command))}` failed with exit code {code}:\n  {tail}")


def child(program: str, *words: object) -> dict[str, Any]:
    """Run one measured piece of `program` in a fresh process; what it prints last is its JSON."""
    out = run([sys.executable, program, "--child", *map(str, words)])
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def measured(command: Sequence[str | Path]) -> dict[str, float]:
    """Run a command and its descendants: wall seconds, and the peak of resident memory in MiB.

    `peak_mib` is of the whole process tree, sampled ten times a second (memory that processes share counts once
    for each); `largest_mib` is of the largest single process, as the kernel counts it.
    """
    import psutil

    with tempfile.TemporaryFile("w+") as stderr:
        start, peak = time.perf_counter(), 0
        process = psutil.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=stderr)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            seconds = time.perf_counter() - start
            if pid:
                break
            peak = max(peak, _resident(process))
            time.sleep(POLL_SECONDS)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        if code:
            stderr.seek(0)
            _failed(command, code, stderr.read())
    largest = usage.ru_maxrss / 1024
    return {"seconds": seconds, "peak_mib": max(peak / 2**20, largest), "largest_mib": largest}


def _resident(process: Any) -> int:
    """Bytes that a process and its descendants hold now."""
    import psutil

    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.Error:  # one has just ended
        pass
    return total


def peak_mib() -> float:
    """Peak resident memory of this process; unlike ru_maxrss it does not start at the parent's."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def medians(results: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The median of every number that the results have in common."""
    rows = list(results)
    keys = [key for key, value in rows[0].items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return {key: statistics.median(row[key] for row in rows) for key in keys}


def agreement(wanted: Sequence[Sequence[int]], found: Sequence[Sequence[int]]) -> float:
    """Share of the wanted answers' tokens that come before the first other one."""
    same = 0
    for one, other in zip(wanted, found, strict=True):
        pairs = list(zip(one, other, strict=False))
        same += next((index for index, (left, right) in enumerate(pairs) if left != right), len(pairs))
    return same / max(sum(map(len, wanted)), 1)


def random_lora(bundle: Any, rank: int, rng: Any) -> dict[str, Any]:
    """A low-rank adapter's tensors, for every linear layer of a bundle."""
    tensors = {}
    for module, (inside, outside) in bundle.module_shapes[0].items():
        tensors[f"{module}.A"] = rng.normal(0, inside**-0.5, (inside, rank)).astype("float32")
        tensors[f"{module}.B"] = rng.normal(0, SPREAD, (rank, outside)).astype("float32")
    return tensors


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns: the first to the left, the others to the right."""
    cells = [list(header), *[[str(value) for value in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                       for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
             for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def follows(model: Any, prompt: list[int], adapters: dict[str, float], tokens: list[int]) -> bool:
    """Whether each token is what a bundle chooses after those before it, or within a near tie of it.

    Passes of other sizes and batches round int4's activations otherwise, so that near ties fall either way.
    """
    import numpy as np

    lanes = model.lanes([adapters], len(prompt) + len(tokens))
    logits = np.array(lanes.feed(0, [*prompt, *tokens[:-1]], keep=0))[len(prompt) - 1 :]
    lanes.close()
    lost = logits.max(-1) - logits[np.arange(len(tokens)), tokens]
    return bool((lost <= TIE * logits.std(-1)).all())


def verdict(good: bool) -> str:
    """Whether a target was met."""
    return "met" if good else "MISSED"


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {"cpu": model[1] if model else "unknown", "cores": len(os.sched_getaffinity(0)),
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS")}
