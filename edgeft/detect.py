"""`edgeft devices --detect`: this machine as a device file."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgeft.contract.errors import EdgeftError
from edgeft.contract.speed import per_thread

MIB = 1 << 20
PROBE = 256 * MIB  # bytes read: far more than any cache of a device holds
SIDE = 1024  # of the matrices that are multiplied
TURNS = 40
OURS = 1.2  # onnxruntime's float32 products over numpy's: measured on Zen 5 with OpenBLAS, assumed of all others
MEASURE = """
import statistics, sys, threading, time
import numpy as np
threads, probe, side, turns = map(int, sys.argv[1:])
def seconds(*targets):
    workers = [threading.Thread(target=target) for target in targets]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start
memory = np.ones(probe // 4, np.int32)
reads = [part.max for part in np.array_split(memory, threads)]
print(memory.nbytes / statistics.quantiles([seconds(*reads) for _ in range(turns)])[0] / 1e9)
matrix = np.ones((side, side), np.float32)
out = np.empty_like(matrix)
print(2 * side**3 / min(seconds(lambda: np.matmul(matrix, matrix, out=out)) for _ in range(turns)) / 1e9)
"""  # a maximum of integers is nothing but loads and compares; the quickest quarter: what others do here is not counted
CGROUP = Path("/sys/fs/cgroup")
ISA = {"avx2": "avx2", "fma": "fma", "f16c": "f16c", "avx_vnni": "avx_vnni", "avx512f": "avx512f",
       "avx512_vnni": "avx512_vnni", "amx_int8": "amx_int8",  # x86-64's flags, then arm64's features
       "asimd": "neon", "asimddp": "dotprod", "asimdhp": "fp16", "i8mm": "i8mm", "sve": "sve"}
APPLE = {"AdvSIMD": "neon", "FEAT_DotProd": "dotprod", "FEAT_FP16": "fp16", "FEAT_I8MM": "i8mm"}
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


def detect() -> str:
    """The text of a device file for this machine; what was measured and how goes to stderr."""
    memory, threads = memory_mib(), cores()
    isa = instructions()
    bandwidth, floats = measured(threads)
    integers, single = per_thread(isa)
    factor = OURS * integers / single
    gops = round(threads * floats * factor)
    arch = ARCHITECTURES.get(platform.machine().lower(), platform.machine().lower())
    _say(f"memory: {memory:,} MiB, of the system and of its control group the smaller; a bundle gets half")
    _say(f"threads: {threads}, physical cores that this process may use")
    _say(f"bandwidth: {bandwidth} GB/s, {threads} thread(s) read {PROBE // MIB} MiB in numpy, a quartile of {TURNS}")
    _say(f"int8_gops: {gops}, {threads} thread(s) times {factor:.2f} (onnxruntime's int8 over numpy's float32) times "
         f"{floats:.0f}, the best of {TURNS} products of {SIDE} by {SIDE}")
    names = ", ".join(f'"{name}"' for name in isa)
    return f"""summary = "{_quoted(model())}"
verified = "checked"
sources = [
    "memory, cores and instructions: as the system tells them ({platform.system()})",
    "bandwidth: read by `edgeft devices --detect`, {PROBE // MIB} MiB, {threads} thread(s), quartile of {TURNS}",
    "int8_gops: {floats:.0f} 10^9 float32 operations a second and thread in numpy, times {factor:.2f}",
]
[limits]
memory_mib = {memory}
budget_mib = {max(memory // 2, 1)}
bandwidth_gb_s = {bandwidth}
int8_gops = {gops}.0
[cpu]
arch = "{arch}"
isa = [{names}]
threads = {threads}
[run]
provider = "CPUExecutionProvider"
options = {{}}
[graph]
quant = "int4"
block = 128
context = 2048
shapes = "dynamic"
slots = ["lowrank", "scale", "prefix"]
"""


def cpu_fields(text: str) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def instructions() -> list[str]:
    """What kernels are chosen by, under the names that device files use."""
    fields = cpu_fields(_read(Path("/proc/cpuinfo")))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    found = [name for flag, name in ISA.items() if flag in flags]
    if sys.platform == "darwin":
        found += [name for key, name in APPLE.items()
                  if "1" in (_sysctl(f"hw.optional.arm.{key}"), _sysctl(f"hw.optional.{key}"))]
    return found


def model() -> str:
    """The processor's name, as far as the system has one."""
    fields = cpu_fields(_read(Path("/proc/cpuinfo")))
    board = _read(Path("/proc/device-tree/model")).strip("\0 \n")
    return board or fields.get("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor() \
        or platform.machine()


def cores() -> int:
    """Physical cores that this process may use: its affinity, and its control group's share of time."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    topology = "/sys/devices/system/cpu/cpu{}/topology/{}"
    places = {tuple(_read(Path(topology.format(cpu, part))).strip() or str(cpu)
                    for part in ("physical_package_id", "core_id")) for cpu in allowed}
    count = len(places) or int(_sysctl("hw.physicalcpu") or os.cpu_count() or 1)
    return max(1, min(count, int(quota(_groups()))))


def quota(groups: list[Path]) -> float:
    """Processors that the control groups allow at once; infinite where nothing is said."""
    least = float("inf")
    for group in groups:
        words = _read(group / "cpu.max").split()  # version 2, then version 1
        if len(words) != 2:
            words = [_read(group / f"cpu.cfs_{part}_us").strip() for part in ("quota", "period")]
        if all(word.isdigit() for word in words) and int(words[1]):
            least = min(least, int(words[0]) / int(words[1]))
    return max(1.0, least) if least != float("inf") else float(1 << 16)


def memory_mib() -> int:
    """All memory, or what the control group allows if that is less."""
    total = next((int(line.split()[1]) << 10 for line in _read(Path("/proc/meminfo")).splitlines()
                  if line.startswith("MemTotal")), 0) or int(_sysctl("hw.memsize") or 0) or _windows_memory()
    limits = [_read(group / name).strip() for group in _groups()
              for name in ("memory.max", "memory.limit_in_bytes")]
    return min([total, *(int(limit) for limit in limits if limit.isdigit())]) // MIB


def measured(threads: int) -> tuple[float, float]:
    """(GB/s of reads by all threads, 10^9 operations a second on float32 products by one), in a process of its own.

    There numpy's products take one thread, whatever this process was told.
    """
    # no huge pages, which numpy asks for: the weights of a runtime seldom lie in them
    one = {"NUMPY_MADVISE_HUGEPAGE": "0", **dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")}
    done = subprocess.run([sys.executable, "-c", MEASURE, str(threads), str(PROBE), str(SIDE), str(TURNS)],
                          capture_output=True, text=True, check=False, env={**os.environ, **one})
    if done.returncode:
        raise EdgeftError(f"this machine's speed cannot be measured ({done.stderr.strip().splitlines()[-1:]})")
    bandwidth, floats = (float(word) for word in done.stdout.split())
    return round(bandwidth, 1), floats


def _groups() -> list[Path]:
    """This process's control group and those above it, of either version."""
    found = [CGROUP, CGROUP / "memory", CGROUP / "cpu"]
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, kinds, path = [*line.split(":", 2), "", ""][:3]
        inside = Path(path.lstrip("/"))
        roots = [CGROUP / kind for kind in kinds.split(",") if kind in ("cpu", "memory")] if kinds else [CGROUP]
        found += [root / part for root in roots for part in (inside, *inside.parents)]
    return found


def _sysctl(name: str) -> str:
    """One of macOS's own facts; empty elsewhere."""
    if sys.platform != "darwin":
        return ""
    done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _windows_memory() -> int:
    if sys.platform != "win32":
        return 0
    import ctypes

    status: Any = (ctypes.c_ulonglong * 8)()  # MEMORYSTATUSEX: two 32-bit words, then totals
    status[0] = ctypes.sizeof(status)
    return int(status[1]) if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _quoted(text: str) -> str:
    return " ".join(text.replace("\\", " ").replace('"', " ").split())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
