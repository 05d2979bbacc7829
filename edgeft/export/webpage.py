"""The page beside a bundle's graph: our modules in web/, and what they need from npm."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from edgeft.contract.bundle import GRAPH, GRAPH_DATA, describe_file, read_bundle, write_manifest
from edgeft.contract.device import Device
from edgeft.contract.errors import EdgeftError
from edgeft.contract.files import copy_file

from .npm import Package, packages, read_package

PAGE = "index.html"
ROOT = (PAGE, "isolate.js")  # a service worker serves what lies beside and below it
FOLDER = "web"
WASM, WEBGPU = "ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"
ENGINES = {WASM, WEBGPU}
# what the page reads of a bundle
READS = (GRAPH, GRAPH_DATA, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def read_packages(device: Device, *, generates: bool) -> dict[str, bytes]:
    """The files from npm that a page for this device needs, before anything is built; none for other devices."""
    if not device.browser:
        return {}
    if not generates:
        raise EdgeftError(f"{device.name}: its page writes text, and this is a classifier or an encoder. "
                          "Export it for a device that runs Python.")
    wanted = packages()
    content = {name: data for package in wanted for name, data in read_package(package).items()}
    others = ENGINES - {engine(device)}
    content = {name: data for name, data in content.items() if name.rpartition(".")[0] not in others}
    return {**content, "NOTICE.txt": _notice(wanted).encode()}


def engine(device: Device) -> str:
    """Which build of onnxruntime-web: the one with WebGPU computes on the processor, too, but is twice as large."""
    return WEBGPU if device.run.provider == "webgpu" else WASM


def check_page(device: Device, cache: str) -> None:
    """EdgeftError for a graph that the page cannot run."""
    if cache != "shared":
        raise EdgeftError(f"{device.name}: its page runs graphs whose past and present share one buffer, and this "
                          "base's architecture is traced, so that its cache grows. Export it for a device that runs "
                          "Python.")


def write_page(folder: Path, from_npm: dict[str, bytes]) -> None:
    """index.html, the modules in web/ and the files from npm among them."""
    (folder / FOLDER).mkdir()
    for source in files("edgeft.export").joinpath("web").iterdir():
        place = folder if source.name in ROOT else folder / FOLDER
        (place / source.name).write_bytes(source.read_bytes())
    for name, data in from_npm.items():
        (folder / FOLDER / name).write_bytes(data)


def page_beside(bundle: Path, device: Device, out: Path) -> Path:
    """A copy of a bundle that was made for another device, as a page; returns its folder.

    EdgeftError where the bundle lacks what a page reads.
    """
    manifest = dict(read_bundle(bundle).manifest)
    kept = [name for name in manifest["files"] if name in READS or name.startswith("adapters/")]
    from_npm = read_packages(device, generates=manifest.get("task") == "text-generation")
    out.mkdir(parents=True)
    for name in kept:
        copy_file(bundle / name, out / name)
    write_page(out, from_npm)
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    manifest["files"] = {name: manifest["files"].get(name) or describe_file(out / name) for name in made}
    write_manifest(out, manifest)
    return out


def size_of(folder: Path) -> dict[str, int]:
    """Bytes that a visitor downloads, by what they are."""
    sizes = {"weights": (folder / GRAPH_DATA).stat().st_size, "runtime": 0, "page": 0, "adapters": 0, "others": 0}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name == GRAPH_DATA:
            continue
        part = "runtime" if path.name.startswith("ort-") else "page" if path.parent.name == FOLDER or name in ROOT \
            else "adapters" if name.startswith("adapters/") else "others"
        sizes[part] += path.stat().st_size
    return sizes


def _notice(wanted: list[Package]) -> str:
    lines = [f"{package.name} {package.version}  {package.license}  {package.home}" for package in wanted]
    return "\n".join(["This page holds files of these packages, unchanged, under their licenses:", *lines, ""])
