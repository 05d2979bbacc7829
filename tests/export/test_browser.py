"""The page in Chromium, where it is installed and npm's packages are to be had: its answers are the Python runner's."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeft.contract.bundle import describe_file
from edgeft.contract.errors import EdgeftError
from edgeft.export.npm import packages, read_package
from edgeft.run import load
from tests.conftest import edgeft, export_bundle, train_run

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from chromium import SOFTWARE_GPU, ask, missing, visit  # noqa: E402

PROMPTS = ["the red cat runs a dog", "the green bird sees a house and", "one two three",
           "\u00e9t\u00e9 \u2603 \U0001f600 x"]
MIXES: list[dict[str, float]] = [{}, {"colors": 1}, {"colors": 0.5}, {"soft": 1}, {"colors": 1, "other": 0.5},
                                 {"colors": 1, "soft": 1}, {"colors": 0}]


@pytest.fixture(scope="module")
def browser() -> None:
    """Skips without Chromium or without what a page takes from npm."""
    if missing():
        pytest.skip(missing())
    try:
        for package in packages():
            read_package(package)
    except EdgeftError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture(scope="module")
def page_bundle(browser: None, tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path,
                lora_run: Path) -> Path:
    """A tiny base as a page, fp32, with two LoRAs and a soft prompt."""
    folder = tmp_path_factory.mktemp("page")
    other = train_run(folder / "other-run", base, data, "--epochs", 4, "--lr", 0.03, "--rank", 3, "--seed", 5)
    soft = train_run(folder / "soft-run", base, data, "--epochs", 4, "--lr", 0.3, "--virtual-tokens", 4,
                     method="prompt_tuning")
    bundle = export_bundle(folder / "bundle", lora_run, "--device", "browser-wasm", "--quant", "fp32", "--name",
                           "colors")
    for name, run in (("other", other), ("soft", soft)):
        edgeft("add", bundle, run, "--name", name)
    return bundle


@pytest.fixture(scope="module")
def client(page_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A worker that has the bundle open, asked without the page's controls."""
    with visit(page_bundle, tmp_path_factory.mktemp("profile")) as there:
        yield there.client()


@pytest.fixture
def copied(page_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    return Path(shutil.copytree(page_bundle, tmp_path / "bundle"))


def generate(client: Any, prompt: Any, adapters: dict[str, float], **options: Any) -> dict[str, Any]:
    found = ask(client, "generate", prompt=prompt, options={"adapters": adapters, "max_tokens": 64, **options})
    return dict(found)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_tokens_and_logits_are_the_python_runners(page_bundle: Path, client: Any, mix: dict[str, float]) -> None:
    model = load(page_bundle)
    for prompt in PROMPTS:
        wanted = model.generate(prompt, adapters=mix, max_tokens=64, raw=True)
        found = generate(client, prompt, mix, raw=True)
        assert found["prompt_tokens"] == wanted.prompt_tokens
        assert found["tokens"] == wanted.tokens
        assert found["finish"] == wanted.finish
        lanes = model.lanes([mix], 128)
        logits = np.array(lanes.prefill([wanted.prompt_tokens])[0])
        lanes.close()
        difference = np.abs(logits - ask(client, "logits", ids=wanted.prompt_tokens, adapters=mix)["logits"]).max()
        assert difference < 1e-3


def test_adapters_change_the_answers(client: Any) -> None:
    """Or the test above would be one of the base alone."""
    ids = ask(client, "encode", text=PROMPTS[0])["ids"]
    logits = [np.array(ask(client, "logits", ids=ids, adapters=mix)["logits"]) for mix in MIXES]
    for index, other in enumerate(logits[1:-1], 1):
        assert all(np.abs(other - one).max() > 0.01 for one in logits[:index])
    assert np.abs(logits[-1] - logits[0]).max() == 0  # at scale 0 it is not there


def test_prompts_are_phrased_as_in_training(page_bundle: Path, client: Any) -> None:
    model = load(page_bundle)
    for mix in ({}, {"colors": 1}, {"soft": 1}):
        wanted = model.generate(PROMPTS[0], adapters=mix, max_tokens=8)
        found = generate(client, PROMPTS[0], mix, max_tokens=8)
        assert (found["prompt_tokens"], found["tokens"]) == (wanted.prompt_tokens, wanted.tokens)
    bare, phrased = (generate(client, PROMPTS[0], {"colors": 1}, raw=raw)["prompt_tokens"] for raw in (True, False))
    assert bare != phrased


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"temperature": 0.8, "top_k": 20},
                                     {"temperature": 1.5, "top_p": 0.9},
                                     {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.3},
                                     {"temperature": 1.0, "top_k": 30, "top_p": 0.7}], ids=str)
def test_a_seed_draws_what_it_draws_in_python(page_bundle: Path, client: Any, options: dict[str, float]) -> None:
    model = load(page_bundle)
    answers = set()
    for seed in (0, 1, 2**40 + 7):
        wanted = model.generate(PROMPTS[0], adapters={}, max_tokens=24, raw=True, seed=seed, **options)
        found = generate(client, PROMPTS[0], {}, max_tokens=24, raw=True, seed=seed, **options)
        assert found["tokens"] == wanted.tokens
        answers.add(tuple(found["tokens"]))
    assert len(answers) == 3


def test_kept_tokens_are_used_again(client: Any) -> None:
    """And only by the same adapters; the answer is the same either way."""
    generate(client, PROMPTS[1], {"other": 1}, raw=True)
    first = generate(client, PROMPTS[1] + " a", {"colors": 1}, raw=True)
    again = generate(client, PROMPTS[1] + " a", {"colors": 1}, raw=True)
    assert first["reused_tokens"] == 0
    assert again["reused_tokens"] == len(again["prompt_tokens"]) - 1
    assert again["tokens"] == first["tokens"]


def test_two_threads_answer_alike(page_bundle: Path, client: Any, tmp_path: Path) -> None:
    """A plain static server is enough for threads: the service worker isolates the page."""
    with visit(page_bundle, tmp_path) as there:
        page = there.client(threads=2)
        assert page.evaluate("crossOriginIsolated")
        one, two = (generate(there, PROMPTS[0], {"colors": 1})["tokens"] for there in (client, page))
        assert one == two


def shown_error(page: Any) -> str:
    page.wait_for_selector("#error:not([hidden])")
    return str(page.get_by_role("alert").inner_text())


def test_a_visitor(page_bundle: Path, tmp_path: Path) -> None:
    """Chooses adapters, runs, stops, sees figures; the console stays silent and no request leaves the machine."""
    with visit(page_bundle, tmp_path, viewport={"width": 390, "height": 800}) as there:
        page = there.open()
        prompt, run = page.get_by_label("Prompt", exact=True), page.get_by_role("button", name="Run")
        assert page.get_by_label("Adapter", exact=True).input_value() == "colors"
        prompt.fill(PROMPTS[0])
        run.click()
        page.wait_for_selector("#run:not([disabled])")
        model = load(page_bundle)
        assert page.text_content("#text") == str(model.generate(PROMPTS[0]))
        assert page.inner_text("#speed").endswith("tok/s")
        assert page.inner_text("#memory").endswith("MiB")
        page.get_by_role("button", name="Add a second").click()
        page.get_by_label("Second adapter", exact=True).select_option("soft")
        page.locator("#adapter-about", has_text="soft prompt").wait_for()
        assert page.get_by_label("Scale of the second adapter").is_disabled()
        assert page.get_by_label("Scale of the adapter").is_enabled()
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert there.said == []
        assert there.foreign == []
        blocked = page.evaluate("fetch('http://example.com/').then(() => 'sent', () => 'blocked')")
        assert blocked == "blocked"


def test_the_stop_button(page_bundle: Path, tmp_path: Path) -> None:
    with visit(page_bundle, tmp_path) as there:
        page = there.open()
        page.evaluate("document.getElementById('max_tokens').value = 200")
        page.evaluate("document.getElementById('temperature').value = 3")
        page.get_by_label("Prompt", exact=True).fill(PROMPTS[0])
        page.evaluate("""() => {
          const text = document.getElementById("text");
          new MutationObserver(() => text.textContent && document.getElementById("stop").click())
            .observe(text, { childList: true, characterData: true, subtree: true });
          document.getElementById("run").click();
        }""")
        page.wait_for_selector("#run:not([disabled])")
        assert "Stopped." in page.inner_text("#note")


def test_an_adapter_of_another_base_is_refused(page_bundle: Path, make_base: Callable[..., Path], data: Path,
                                               tmp_path: Path) -> None:
    stranger = train_run(tmp_path / "run", make_base(seed=1), data, "--epochs", 1)
    foreign = export_bundle(tmp_path / "foreign", stranger, "--quant", "fp32", "--name", "foreign")
    with visit(page_bundle, tmp_path / "profile") as there:
        page = there.open()
        for file, words in ((foreign / "adapters/foreign.safetensors", "base fingerprint"),
                            (page_bundle / "tokenizer.json", "tokenizer.json: is not a safetensors file")):
            page.get_by_label("Open an adapter file").set_input_files(file)
            page.locator("#error-text", has_text=words).wait_for()
            assert "That did not work" in shown_error(page)
        page.get_by_role("button", name="Close").click()
        own = tmp_path / "mine.safetensors"
        shutil.copyfile(page_bundle / "adapters/other.safetensors", own)
        page.get_by_label("Open an adapter file").set_input_files(own)
        page.locator("#adapter-about", has_text="mine: rank").wait_for()
        assert page.get_by_label("Adapter", exact=True).input_value() == "mine"
        assert page.locator("#error").is_hidden()


@pytest.mark.parametrize("file", ["model.onnx", "model.onnx.data", "tokenizer.json", "adapters/colors.safetensors",
                                  "web/ort-wasm-simd-threaded.wasm"])
def test_a_flipped_bit_is_told(copied: Path, tmp_path: Path, file: str) -> None:
    content = bytearray((copied / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / file).write_bytes(content)
    with visit(copied, tmp_path / "profile") as there:
        said = shown_error(there.open())
    assert f"{file}: is not as it was exported" in said
    assert "sha256  declared" in said


@pytest.mark.parametrize(("change", "words"), [
    (lambda folder: (folder / "model.onnx.data").unlink(), "model.onnx.data: the server answers 404"),
    (lambda folder: (folder / "model.onnx.data").write_bytes(b"short"), "found 5 bytes"),
    (lambda folder: edit(folder, format=2), "bundle format declared 2, this page reads 1"),
    (lambda folder: edit(folder, task="text-classification"), "task  declared text-generation"),
    (lambda folder: edit(folder, files={}), "model.onnx is not listed"),
], ids=["missing", "short", "format", "task", "files"])
def test_what_cannot_be_run_is_told(copied: Path, tmp_path: Path, change: Callable[[Path], Any], words: str) -> None:
    change(copied)
    with visit(copied, tmp_path / "profile") as there:
        assert words in shown_error(there.open())


def edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**manifest, **changes}))


def test_int4_keeps_activations_as_floats(browser: None, lora_run: Path, tmp_path: Path) -> None:
    """WebAssembly has no kernel that rounds them to int8, which the graph allows and other processors do."""
    bundle = export_bundle(tmp_path / "bundle", lora_run, "--device", "browser-wasm", "--quant", "int4")
    with visit(bundle, tmp_path / "profile") as there:
        page = there.client()
        ids = ask(page, "encode", text=PROMPTS[0])["ids"]
        found = np.array(ask(page, "logits", ids=ids, adapters={})["logits"])
    floats, rounded = (np.abs(found - logits_at(bundle, ids, level)).max() for level in (1, 4))
    assert floats < 1e-3 < rounded


def logits_at(bundle: Path, ids: list[int], accuracy_level: int) -> Any:
    """What onnxruntime gives here behind a prompt; 1 keeps activations as floats, 4 allows int8."""
    graph = onnx.load(bundle / "model.onnx", load_external_data=False)
    for attribute in (item for node in graph.graph.node for item in node.attribute):
        if attribute.name == "accuracy_level":
            attribute.i = accuracy_level
    changed = bundle / "changed.onnx"
    onnx.save(graph, changed)
    session = ort.InferenceSession(changed, providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64),
             "logits_to_keep": np.array([1])}
    for layer, (heads, size) in enumerate(json.loads((bundle / "bundle.json").read_text())["slots"]["prefix"]):
        for part in ("key", "value"):
            feeds[f"past_key_values.{layer}.{part}"] = np.zeros((1, heads, 0, size), np.float32)
    return session.run(["logits"], feeds)[0][0, -1]


@pytest.mark.parametrize(("adapters", "options", "words"), [
    ({"nobody": 1}, {}, "has no adapter 'nobody'"),
    ({"soft": 0.5}, {}, "it is there or it is not"),
    ({}, {"temperature": -1}, "Out of range: temperature -1"),
    ({}, {"max_tokens": 0}, "max_tokens must be at least 1"),
    ({}, {"prompt": "red " * 400}, "no room is left for an answer"),
])
def test_wrong_requests_are_told(client: Any, adapters: dict[str, float], options: dict[str, Any], words: str) -> None:
    prompt = options.pop("prompt", PROMPTS[0])
    with pytest.raises(Exception, match=words):
        generate(client, prompt, adapters, **options)


@pytest.fixture(scope="module")
def gpu_bundle(browser: None, tmp_path_factory: pytest.TempPathFactory, lora_run: Path) -> Path:
    """The tiny base with a LoRA, as a page for WebGPU."""
    return export_bundle(tmp_path_factory.mktemp("gpu") / "bundle", lora_run, "--device", "browser-webgpu", "--quant",
                         "fp32", "--name", "colors")


def test_without_webgpu_the_page_says_so(gpu_bundle: Path, page_bundle: Path, tmp_path: Path) -> None:
    with visit(gpu_bundle, tmp_path / "one") as there:
        page = there.open()
        assert "made for WebGPU and runs without it" in page.inner_text("#slower")
        assert page.inner_text("#engine").startswith("WebAssembly")
        page.get_by_label("Prompt", exact=True).fill(PROMPTS[0])
        page.get_by_role("button", name="Run").click()
        page.wait_for_selector("#run:not([disabled])")
        assert page.text_content("#text") == str(load(gpu_bundle, provider="CPUExecutionProvider").generate(PROMPTS[0]))
    with visit(page_bundle, tmp_path / "other") as there:
        assert there.open().locator("#slower").is_hidden()


def test_webgpu_answers_as_the_python_runner(gpu_bundle: Path, tmp_path: Path) -> None:
    """On a GPU that the processor stands in for."""
    model = load(gpu_bundle, provider="CPUExecutionProvider")
    with visit(gpu_bundle, tmp_path, gpu=SOFTWARE_GPU) as there:
        if not there.open().evaluate("navigator.gpu?.requestAdapter().then(found => !!found) ?? false"):
            pytest.skip("this Chromium has no software GPU")
        page = there.client()
        assert there.context.pages[-1].evaluate("document.getElementById('engine').textContent") == "WebGPU"
        answers = []
        for mix in ({}, {"colors": 1.0}, {"colors": 0.5}):
            wanted = model.generate(PROMPTS[0], adapters=mix, max_tokens=32, raw=True)
            answers.append(generate(page, PROMPTS[0], mix, max_tokens=32, raw=True)["tokens"])
            assert answers[-1] == wanted.tokens
        assert answers[0] != answers[1]


def test_what_the_folder_holds(page_bundle: Path) -> None:
    """One graph over the weights, and everything listed with its digest; the Python runner verifies it, too."""
    manifest = json.loads((page_bundle / "bundle.json").read_text())
    found = {path.relative_to(page_bundle).as_posix() for path in page_bundle.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == found - {"bundle.json"}
    assert [name for name in sorted(found) if name.endswith(".onnx")] == ["model.onnx"]
    assert manifest["files"]["web/model.js"] == describe_file(page_bundle / "web/model.js")
    assert "every digest as recorded" in edgeft("verify", page_bundle).stdout


@pytest.mark.slow
def test_ten_prompts_on_a_real_model(browser: None, shared: Path, tmp_path: Path) -> None:
    """stories3m, fp32: a bundle made for another device, its page beside it; and tokens of real text."""
    from place_browser import answers

    base, data = shared / "models" / "stories3m", shared / "data" / "e2e" / "train.jsonl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = train_run(tmp_path / "lora", base, data, "--max-steps", 20)
        soft = train_run(tmp_path / "soft", base, data, "--max-steps", 10, method="prompt_tuning")
    bundle = export_bundle(tmp_path / "bundle", lora, "--quant", "fp32")
    edgeft("add", bundle, soft, "--name", "soft")
    model = load(bundle)
    lines = (shared / "data" / "tinystories" / "probe.jsonl").read_text(encoding="utf-8").splitlines()[:10]
    texts = [json.loads(line)["text"] for line in lines]
    asked = [{"prompt_tokens": model.encode(text[:60], {}, raw=True), "adapter": adapter}
             for adapter in (None, "lora", "soft") for text in texts]
    given = answers(bundle, asked, 64)
    for question, answer in zip(asked, given, strict=True):
        mix = {question["adapter"]: 1.0} if question["adapter"] else {}
        lanes = model.lanes([mix], model.context)
        logits = np.array(lanes.prefill([question["prompt_tokens"]])[0])
        wanted = [int(logits.argmax())]
        while len(wanted) < 64 and wanted[-1] not in model.eos:
            wanted.append(int(lanes.step(wanted[-1:])[0].argmax()))
        lanes.close()
        assert answer["tokens"] == wanted
        assert np.abs(logits - answer["logits"]).max() < 1e-3
    bare, lora_answers, soft_answers = (given[start : start + 10] for start in (0, 10, 20))
    assert bare != lora_answers != soft_answers != bare
