"""Coverage-guided fuzzing of one target, or of all: `python fuzz/run.py [--seconds N] [TARGET ...]`.

Each target runs in a process of its own (atheris), from the corpus in fuzz/corpus and what earlier runs found under
build/fuzz (move that to fuzz/corpus/TARGET/found to keep it). Prints time, executions and coverage; ends with 1 where
there was a finding, whose input stays in build/fuzz.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MEMORY, SLOWEST, LONGEST = 2048, 20, 1 << 16  # MiB of a process, seconds of an input, bytes of one


def fuzz(name: str) -> None:
    """In the process of one target: never returns."""
    import atheris

    with atheris.instrument_imports(include=["edgeft"]):
        from fuzz import targets
    corpus, found = ROOT / "fuzz" / "corpus" / name, ROOT / "build" / "fuzz" / name
    found.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            str(found),
            str(corpus),
            f"-max_total_time={os.environ['SECONDS']}",
            f"-rss_limit_mb={MEMORY}",
            f"-timeout={SLOWEST}",
            f"-max_len={LONGEST}",
            "-print_final_stats=1",
            f"-artifact_prefix={ROOT / 'build' / 'fuzz'}/{name}-",
        ],
        lambda data: targets.run(name, data) and None,
    )
    atheris.Fuzz()


def report(name: str, seconds: int) -> bool:
    """Run one target and print its figures; whether it went well."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, "--inside", name],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "SECONDS": str(seconds), "TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    took = time.monotonic() - started
    executions = re.findall(r"number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
    print(
        f"{name:10}  {took:6.0f} s  {int(executions[-1]) if executions else 0:>10,} executions  "
        f"{covered[-1][0] if covered else 0:>5} edges, {covered[-1][1] if covered else 0:>6} features  "
        f"{'no finding' if not done.returncode else 'FINDING'}",
        flush=True,
    )
    if done.returncode:
        print(done.stderr[-4000:], flush=True)
    return not done.returncode


def main() -> None:
    """All targets, one after the other."""
    if sys.argv[1:2] == ["--inside"]:
        fuzz(sys.argv[2])
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all without one")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    chosen = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        sys.exit("fuzzing needs atheris: pip install 'edgeft[fuzz]'")
    well = [report(name, chosen.seconds) for name in chosen.targets or TARGETS]
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
