"""An arm64 Debian with the plain `edgeft` wheel in it, run on this machine by QEMU's user emulation.

The root lies in build/arm64 and is kept: a second call takes seconds, and only a changed edgeft is installed again. All
mounts are made in a namespace of their own, so that none is left behind whatever happens. On an arm64 machine the
same root runs without emulation.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from common import fail, run, say

TREE = Path(__file__).resolve().parents[1]
BUILD = TREE / "build" / "arm64"
ROOT, WHEELS = BUILD / "root", BUILD / "wheels"
PYTHON = "/opt/edgeft/bin/python"  # in the root
SUITE, VERSION = "bookworm", "3.11"  # a Debian, and the Python in it
MIRROR = "http://deb.debian.org/debian"
PACKAGES = {"debootstrap": "debootstrap", "qemu-aarch64-static": "qemu-user-static",
            "update-binfmts": "binfmt-support"}  # program -> Debian package
BINFMT = Path("/proc/sys/fs/binfmt_misc")
SOURCES = ("edgeft", "plugins", "devices", "pyproject.toml", "README.md", "LICENSE")  # what the wheel is built from
GLIBC = ("2_17", "2_26", "2_27", "2_28", "2_34")  # the root has 2.36
ENTER = """set -e
root=$1; shift
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do mkdir -p "$root$2"; mount --bind "$1" "$root$2"; shift 2; done
shift
exec chroot "$root" "$@"
"""


def native() -> bool:
    """Whether this machine needs no emulation."""
    return platform.machine() in ("aarch64", "arm64")


def missing_tools() -> list[str]:
    """Debian packages that are not here."""
    needed = ["debootstrap"] if native() else list(PACKAGES)
    return [PACKAGES[tool] for tool in needed if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]


def need_rights() -> None:
    """Stop with one message where a root can neither be built nor entered; install what can be installed."""
    if sys.platform != "linux" or os.geteuid() != 0:
        fail("building and entering an arm64 root takes Linux and root's rights (chroot, mount). Run it as root, or "
             "run edgeft on an arm64 machine itself.")
    packages = missing_tools()
    if packages and shutil.which("apt-get") is None:
        fail(f"not here: {', '.join(packages)}. Install them; there is no apt-get that this program could ask.")
    if packages:
        say(f"apt-get install {' '.join(packages)}")
        run(["apt-get", "install", "--yes", "--no-install-recommends", *packages])


def register() -> None:
    """Let the kernel start arm64 programs; the registration is the machine's and stays until it is switched off."""
    if native():
        return
    if not (BINFMT / "register").exists():
        run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT])
    if not (BINFMT / "qemu-aarch64").exists():
        run(["/usr/sbin/update-binfmts", "--enable", "qemu-aarch64"])
    if not (BINFMT / "qemu-aarch64").exists():
        fail("qemu-aarch64 could not be registered with binfmt_misc. Look at `update-binfmts --display qemu-aarch64`.")


def build() -> None:
    """The root, with Python and its venv module; once."""
    if ROOT.exists():
        return
    stage = BUILD / "root.partial"
    shutil.rmtree(stage, ignore_errors=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    say(f"downloading an arm64 {SUITE}")
    run(["/usr/sbin/debootstrap", "--arch=arm64", "--foreign", "--variant=minbase",
         "--include=python3,python3-venv", SUITE, stage, MIRROR])
    say("unpacking it, emulated: some minutes")
    run(["chroot", stage, "/debootstrap/debootstrap", "--second-stage"])
    stage.rename(ROOT)


def enter(command: Sequence[str | Path], mounts: Mapping[Path, str] | None = None) -> str:
    """Run a command in the root and return its stdout; folders and files of this machine are seen where `mounts` says.

    A path to mount on must exist in the root unless it is of a folder.
    """
    pairs = [str(part) for source, target in (mounts or {}).items() for part in (source, target)]
    return run(["unshare", "--mount", "sh", "-c", ENTER, "sh", ROOT, *pairs, "--", *command],
               env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root",
                    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")})


def build_wheel() -> Path:
    """The wheel of this tree, built from a copy: setuptools would take leftovers of older builds from build/lib."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    for old in WHEELS.glob("edgeft-*.whl"):
        old.unlink()
    with tempfile.TemporaryDirectory() as copy:
        for name in SOURCES:
            if (TREE / name).is_dir():
                shutil.copytree(TREE / name, Path(copy) / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(TREE / name, copy)
        run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir",
             WHEELS, copy])
    (wheel,) = WHEELS.glob("edgeft-*.whl")
    return wheel


def install(wheel: Path) -> None:
    """The wheel and its dependencies, downloaded here as aarch64 wheels: the root itself needs no network."""
    platforms = [part for glibc in GLIBC for part in ("--platform", f"manylinux_{glibc}_aarch64")]
    say("downloading aarch64 wheels")
    run([sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version", VERSION,
         "--implementation", "cp", *platforms, "--platform", "manylinux2014_aarch64", "--find-links", WHEELS,
         "--dest", WHEELS, wheel])
    say("installing them in the root, emulated")
    if not (ROOT / PYTHON.lstrip("/")).is_symlink():
        enter(["python3", "-m", "venv", "/opt/edgeft"])
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", "/wheels"]
    enter([*pip, "edgeft"], {WHEELS: "/wheels"})
    enter([*pip, "--no-deps", "--force-reinstall", f"/wheels/{wheel.name}"], {WHEELS: "/wheels"})


def lacks() -> str:
    """What must be done before the root can be asked; '' if nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "run it on Linux as root (chroot and mount)"
    if not (ROOT / PYTHON.lstrip("/")).is_symlink():
        return "`make test-arm64` builds the arm64 root that it runs in"
    if not native() and subprocess.run(["chroot", ROOT, "true"], capture_output=True, check=False).returncode:
        return "`make test-arm64` registers qemu-aarch64, which starts arm64 programs"
    return ""
