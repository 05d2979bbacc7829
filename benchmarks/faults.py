"""Kills or fails a command at every call that changes something on disk, and asks whether the next command works.

Modes: kill (half of a write is done), plug (and what was never flushed is gone), EACCES (that call alone), ENOSPC (from
that call on, as on a full disk). A state is bad if it is neither the old nor the new one, if the same command does not
reach the new one afterwards, if a file is left that a run without faults does not leave, or if the failed command ends
with anything but one message. Needs gcc and Linux: the calls are counted by a library that is loaded before the C
library (faults.c), so that Python, C++ and Rust are seen alike. torch is imported once; each point is a fork.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import arguments, fail, say, start, workspace

COUNT, KILL, PLUG, FAIL, FULL = 1, 2, 3, 4, 5  # as in faults.c
MODES = {"kill": (KILL, 0), "plug": (PLUG, 0), "EACCES": (FAIL, errno.EACCES), "ENOSPC": (FULL, errno.ENOSPC)}
DONE, REFUSED, CRASHED = 0, 3, 4  # exit codes of a forked command: a refusal is one message to the user
PRELOAD = "EDGEFT_FAULTS"


def library(folder: Path) -> Path:
    """Compile faults.c; stops the program where there is no compiler."""
    path = folder / "faults.so"
    try:
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", path, Path(__file__).with_suffix(".c"), "-ldl"],
                       check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        fail(f"needs gcc ({error})")
    return path


class Injector:
    """The loaded library, which watches one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.library = folder, ctypes.CDLL(os.environ[PRELOAD])

    def arm(self, mode: int, number: int = 0, code: int = 0) -> None:
        """From now on count, and at call `number` do what `mode` says."""
        self.library.faults_arm(os.fsencode(self.folder), mode, ctypes.c_long(number), code)

    def off(self) -> int:
        """Stop; how many calls there were."""
        self.library.faults_off()
        return int(self.library.faults_count())


def forked(action: Callable[[], Any], log: Path) -> int:
    """Run something in a fork: its exit code as above, or minus the signal that ended it; `log` takes its output."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = CRASHED
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        from edgeft.contract.errors import EdgeftError

        try:
            action()
            code = DONE
        except EdgeftError as error:
            print(f"refused: {error}")
            code = REFUSED
        except SystemExit as ended:
            code = DONE if not ended.code else REFUSED if ended.code in (1, 2) else CRASHED
        except BaseException:
            import traceback

            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def tree(folder: Path) -> list[str]:
    """Every file and folder below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class Trial:
    """One scenario: its start, its command, and what both leave when nothing goes wrong."""

    def __init__(self, scenario: Any, injector: Injector, log: Path) -> None:
        self.scenario, self.injector, self.log = scenario, injector, log
        self.counts: dict[str, int] = {}
        for mode, (how, code) in MODES.items():
            if how in (KILL, FULL):
                self._reset()
                self._must(lambda how=how, code=code: self._counting(how, code))
                self.counts[mode] = int((self.log.with_suffix(".count")).read_text())
        self.counts |= {"plug": self.counts["kill"], "EACCES": self.counts["kill"]}
        self._must(lambda: self._expect("new"))
        self.clean = tree(injector.folder)

    def _reset(self) -> None:
        shutil.rmtree(self.injector.folder, ignore_errors=True)
        self.injector.folder.mkdir()
        self.scenario.begin(self.injector.folder)

    def _counting(self, how: int, code: int) -> None:
        """Count: every call, or those alone that a full disk would fail (none is the -1st)."""
        self.injector.arm(COUNT if how == KILL else FULL, 1 << 40, code)
        self.scenario.act(self.injector.folder)
        self.log.with_suffix(".count").write_text(str(self.injector.off()))

    def _must(self, action: Callable[[], Any]) -> None:
        if forked(action, self.log) != DONE:
            fail(f"{self.scenario.name}: fails without any fault\n{self.log.read_text()}")

    def _expect(self, *states: str) -> None:
        found = self.scenario.state(self.injector.folder)
        assert found in states, f"state is {found}, expected {' or '.join(states)}"

    def point(self, mode: str, number: int) -> str:
        """Fault at one call; empty if all is well, else what is bad."""
        how, code = MODES[mode]
        folder = self.injector.folder
        self._reset()

        def faulty() -> None:
            self.injector.arm(how, number, code)
            try:
                self.scenario.act(folder)
            finally:
                self.injector.off()

        ended = forked(faulty, self.log)
        said = self.log.read_text(errors="replace")
        if ended == CRASHED or (how in (KILL, PLUG) and ended not in (-9, DONE)):
            return f"ended with {ended}\n{_end(said)}"
        allowed = ("new",) if ended == DONE else ("old", "new")

        def after() -> None:
            self._expect(*allowed)
            self.scenario.again(folder)
            self._expect("new")
            left = tree(folder)
            assert left == self.clean, f"left {sorted(set(left) ^ set(self.clean))}"

        found = forked(after, self.log)
        return "" if found == DONE else f"{_end(said)}\nafterwards:\n{_end(self.log.read_text(errors='replace'))}"


def _end(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()[-6:])


def run_points(trial: Trial, modes: list[str], sample: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Points tried by mode, and what was bad."""
    tried: Counter[str] = Counter()
    bad = []
    for mode in modes:
        numbers = list(range(1, trial.counts[mode] + 1))
        if sample and len(numbers) > sample:
            numbers = sorted(random.Random(f"{seed} {trial.scenario.name} {mode}").sample(numbers, sample))
        for number in numbers:
            found = trial.point(mode, number)
            tried[mode] += 1
            if found:
                bad.append(f"{trial.scenario.name}, {mode} at call {number}: {found.strip()}")
    return tried, bad


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", nargs="*", help="these commands (default: all)")
    parser.add_argument("--modes", nargs="*", choices=list(MODES), default=list(MODES))
    parser.add_argument("--sample", type=int, default=0, help="at most so many calls of each command and mode")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    args = parser.parse_args()
    if PRELOAD not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            path = str(library(Path(folder)))
            sys.exit(subprocess.run([sys.executable, *sys.argv], check=False,
                                    env={**os.environ, "LD_PRELOAD": path, PRELOAD: path}).returncode)
    os.environ.pop("LD_PRELOAD")  # not for the runner that an export starts
    from fault_scenarios import Fixtures, scenarios

    with workspace(args) as work:
        work = work.resolve()
        fixtures = Fixtures(work / "fixtures")
        if forked(fixtures.build, work / "log") != DONE:
            fail(f"cannot begin\n{(work / 'log').read_text()}")
        known = {item.name: item for item in scenarios(fixtures)}
        if args.only and not set(args.only) <= set(known):
            fail(f"--only: known are {', '.join(known)}")
        total, faults = 0, []
        print(f"{'command':<16}{'calls':>6}{''.join(f'{mode:>8}' for mode in args.modes)}{'bad':>6}{'seconds':>9}")
        for name in args.only or [name for name in known if not name.startswith("naive")]:
            begun = time.perf_counter()
            trial = Trial(known[name], Injector(work / "watched"), work / "log")
            tried, bad = run_points(trial, args.modes, args.sample, args.seed)
            print(f"{name:<16}{trial.counts['kill']:>6}" + "".join(f"{tried[mode]:>8}" for mode in args.modes)
                  + f"{len(bad):>6}{time.perf_counter() - begun:>9.0f}", flush=True)
            for text in bad[:3]:
                say(text)
            total, faults = total + sum(tried.values()), faults + bad
        print(f"{total} points, {len(faults)} bad states")
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    start(main)
