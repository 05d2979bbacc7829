"""Load bundles and adapters in forked children that are watched: what they open, start and allocate.

`python -m tests.attacks.watch` reads one JSON line per case and answers each with one. Everything is imported before
the first fork, so that a child opens what its case makes it open and nothing else. onnxruntime opens files out of
Python's sight; that no session was begun is what shows that it did not.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOM = 1 << 30  # bytes of address space beyond what is there: what runs wild ends here, not on the whole machine


def status(name: str) -> int:
    """Bytes, from /proc/self/status."""
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith(f"{name}:"))


def try_case(case: dict[str, Any]) -> dict[str, Any]:
    """Do what the case asks for, in this process, and tell all about it."""
    import onnxruntime as ort

    opened: list[str] = []
    sessions: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in (
            "open",
            "os.listdir",
            "ctypes.dlopen",
            "os.exec",
            "socket.connect",
            "pickle.find_class",
        ):
            opened.append(f"{event} {os.fspath(arguments[0]) if isinstance(arguments[0], str | bytes | Path) else ''}")

    class Session(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            sessions.append("begun")
            super().__init__(*arguments, **options)

    ort.InferenceSession = Session
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")  # the high-water mark starts again
    before, space = status("VmRSS"), status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (space + ROOM, space + ROOM))
    sys.addaudithook(hook)
    started = time.perf_counter()
    said: dict[str, Any] = {}
    try:
        said["answer"] = act(case)
    except BaseException as error:
        from edgeft.contract.errors import EdgeftError

        said["refused" if isinstance(error, EdgeftError) else "crashed"] = f"{type(error).__name__}: {error}"
    watching = False
    own = str(Path(case["path"]).resolve().parent if case["kind"] != "load" else Path(case["path"]).resolve())
    allowed = (
        own,
        *case.get("allowed", []),
        "/proc/",
        "/sys/",
        "/dev/null",
        *sys.path[1:],
        sys.prefix,
        sys.base_prefix,
        os.path.dirname(os.__file__),
    )
    outside = [
        line
        for line in opened
        if (place := line.partition(" ")[2]) and os.path.isabs(place) and not os.path.abspath(place).startswith(allowed)
    ]
    return {
        **said,
        "outside": outside,
        "sessions": len(sessions),
        "seconds": time.perf_counter() - started,
        "grown_mib": (status("VmHWM") - before) / 2**20,
    }


def act(case: dict[str, Any]) -> Any:
    """Load a bundle, or an adapter into one, or do what the harness itself is tested with."""
    from edgeft.run import load
    from edgeft.run.verify import verify

    if case["kind"] == "load":
        return load(case["path"]).generate("a", adapters=case.get("adapters", {}), max_tokens=2).text
    if case["kind"] == "verify":
        return verify(Path(case["path"]))["agreement"]
    if case["kind"] == "install":
        from edgeft.run.install import install

        return install(Path(case["path"]), Path(case["path"]).with_name("there"))
    if case["kind"] == "adapter":
        model = load(case["bundle"])
        model.load_adapter("stranger", case["path"])
        return model.generate("a", adapters={"stranger": 1.0}, max_tokens=2).text
    if case["kind"] == "artifact":
        from edgeft.contract.artifact import read_artifact

        return len(read_artifact(Path(case["path"])).learned())
    if case["kind"] == "device":
        from edgeft.contract.device import read_device

        return read_device(Path(case["path"])).name
    if case["kind"] == "spy":  # it must be caught
        Path(case["secret"]).read_bytes()
        return len(bytearray(case["mib"] << 20))
    raise ValueError(case["kind"])


def main() -> None:
    """A fork for each line."""
    import edgeft.contract.artifact
    import edgeft.contract.device
    import edgeft.run.install
    import edgeft.run.model
    import edgeft.run.verify  # noqa: F401

    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            with os.fdopen(writer, "w") as stream:
                stream.write(json.dumps(try_case(json.loads(line))))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            said = stream.read()
        _, code = os.waitpid(child, 0)
        print(
            said or json.dumps({"crashed": f"ended with {code}", "outside": [], "sessions": 0, "grown_mib": 0}),
            flush=True,
        )


class Watcher:
    """The process that forks, seen from a test."""

    def __init__(self) -> None:
        root = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.watch"],
            stdin=subprocess.PIPE,
            text=True,
            stdout=subprocess.PIPE,
            cwd=root,
        )

    def __call__(self, kind: str, path: Path, **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"kind": kind, "path": str(path), **more}) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


if __name__ == "__main__":
    main()
