/** The page: what a person sees and presses. */
import { Client } from "./client.js";
import { isolate } from "./isolation.js";

const NONE = "";
const $ = (id) => document.getElementById(id);
const client = new Client();
let bundle = null;

start();

async function start() {
  wire();
  try {
    if (!isSecureContext) {
      throw new Error("This address is not a secure one, so the browser cannot check the files' digests.\n" +
        "Open the page over https, or as http://localhost.");
    }
    const single = await isolate();
    const wanted = Math.max(1, navigator.hardwareConcurrency || 1);
    const threads = single ? 1 : Math.min(wanted, 4);
    bundle = await client.ask("load", { address: new URL("./", location.href).href, threads }, progress);
    show(single);
  } catch (error) {
    $("loading").hidden = true;
    fail(error);
  }
}

function wire() {
  $("form").addEventListener("submit", run);
  $("stop").addEventListener("click", () => client.stop());
  $("error-close").addEventListener("click", () => ($("error").hidden = true));
  $("stack").addEventListener("click", stack);
  $("file").addEventListener("change", offer);
  for (const place of [1, 2]) {
    $(`adapter-${place}`).addEventListener("change", chosen);
    $(`scale-${place}`).addEventListener("input", () => scaled(place));
  }
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
}

const received = new Map();

function progress({ file, received: bytes, total }) {
  received.set(file, [bytes, total]);
  const sums = [...received.values()].reduce(([one, other], [a, b]) => [one + a, other + b], [0, 0]);
  $("loading-bar").value = sums[0] / sums[1];
  const [here, all] = sums;
  $("loading-text").textContent = here < all ? `Loading ${mib(here)} of ${mib(all)}` : "Starting the model";
}

function show(single) {
  const { base, quant, threads, fallback, memory_mib: memory, sampling, context } = bundle;
  const name = base.id.split("/").pop();
  document.title = name;
  $("title").textContent = name;
  const size = `${short(base.parameters)} parameters, ${quant.kind}`;
  $("about").textContent = `${size}, ${context.toLocaleString("en")} tokens of context`;
  $("engine").textContent = threads ? `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}` : "WebGPU";
  $("engine").hidden = false;
  $("memory").textContent = `${memory.toFixed(0)} MiB`;
  const slower = [];
  if (fallback) slower.push(`This page was made for WebGPU and runs without it, which is slower: ${fallback}.`);
  if (single && threads) slower.push(`One thread only, which is slower: ${single}.`);
  $("slower").textContent = slower.join(" ");
  for (const [key, value] of Object.entries(sampling)) if ($(key)) $(key).value = value;
  for (const place of [1, 2]) {
    const known = Object.keys(bundle.adapters).map((item) => new Option(item));
    $(`adapter-${place}`).append(new Option("none", NONE), ...known);
  }
  $("adapter-1").value = bundle.default_adapter ?? NONE;
  $("loading").hidden = true;
  for (const id of ["form", "result"]) $(id).hidden = false;
  chosen();
  $("prompt").focus();
}

function stack() {
  const closed = $("second").hidden;
  $("second").hidden = !closed;
  $("stack").textContent = closed ? "Remove the second" : "Add a second";
  $("stack").setAttribute("aria-expanded", closed);
  if (!closed) $("adapter-2").value = NONE;
  chosen();
}

function scaled(place) {
  $(`scale-${place}-value`).textContent = Number($(`scale-${place}`).value).toFixed(2);
}

/** What the person chose: {name: scale}. */
function mix() {
  const made = {};
  for (const place of [1, 2]) {
    const name = $(`adapter-${place}`).value;
    if (name === NONE) continue;
    if (name in made) throw new Error(`'${name}' is chosen twice. Choose another, or one of them with its scale.`);
    made[name] = $(`scale-${place}`).disabled ? 1 : Number($(`scale-${place}`).value);
  }
  return made;
}

/** Adapters are read and packed when they are chosen, so that running starts at once. */
async function chosen() {
  try {
    const about = [];
    const tasks = new Set();
    for (const place of [1, 2]) {
      const name = $(`adapter-${place}`).value;
      const adapter = name === NONE ? null : await client.ask("adapter", { name });
      $(`scale-${place}`).disabled = !adapter || adapter.soft;
      if (!adapter) continue;
      about.push(adapter.soft ? `${name}: soft prompt of ${adapter.length} tokens` : `${name}: rank ${adapter.rank}`);
      adapter.tasks.forEach((task) => tasks.add(task));
    }
    $("adapter-about").textContent = about.join(", ");
    $("task").replaceChildren(...[...tasks].map((task) => new Option(task)));
    $("task-label").hidden = !tasks.size;
    const { switch_ms: took } = await client.ask("switch", { adapters: mix() });
    switched(took);
    $("error").hidden = true;
  } catch (error) {
    fail(error);
  }
}

async function offer() {
  const [file] = $("file").files;
  if (!file) return;
  $("file").value = "";
  const name = file.name.replace(/\.safetensors$/, "");
  try {
    const bytes = new Uint8Array(await file.arrayBuffer());
    await client.ask("offer", { name, bytes, file: file.name }, undefined, [bytes.buffer]);
    for (const place of [1, 2]) $(`adapter-${place}`).append(new Option(name));
    $("adapter-1").value = name;
    await chosen();
  } catch (error) {
    fail(error);
  }
}

function options() {
  const number = (id) => Number($(id).value);
  return { adapters: mix(), raw: $("raw").checked, task: $("task").value || null, max_tokens: number("max_tokens"),
           temperature: number("temperature"), top_k: number("top_k"), top_p: number("top_p"),
           seed: $("seed").value === "" ? null : number("seed") };
}

async function run(event) {
  event.preventDefault();
  const prompt = $("prompt").value;
  $("error").hidden = true;
  $("text").textContent = "";
  $("asked").textContent = $("raw").checked ? prompt : "";
  busy(true);
  const start = performance.now();
  let pieces = 0;
  try {
    const done = await client.ask("generate", { prompt, options: options() }, (piece) => {
      pieces += 1;
      if (pieces === 1) $("first").textContent = `${(performance.now() - start).toFixed(0)} ms`;
      $("text").textContent += piece;
    });
    report(done);
  } catch (error) {
    fail(error);
  } finally {
    busy(false);
  }
}

const ENDS = { eos: "", length: "It stopped at the most tokens.", context: "It stopped where the context is full.",
               cancelled: "Stopped." };

function report(done) {
  const speed = done.decode_tokens_per_s;
  $("speed").textContent = speed ? `${speed.toFixed(speed < 100 ? 1 : 0)} tok/s` : "–";
  switched(done.switch_ms);
  $("memory").textContent = `${done.memory_mib.toFixed(0)} MiB`;
  const parts = [`${done.tokens.length} tokens behind a prompt of ${done.prompt_tokens.length}`];
  if (done.reused_tokens) parts.push(`${done.reused_tokens} of the prompt's were still there`);
  if (done.seed !== null) parts.push(`seed ${done.seed}`);
  $("note").textContent = `${parts.join(", ")}. ${ENDS[done.finish]}`;
}

function switched(took) {
  if (took >= 0.05) $("switch").textContent = `${took.toFixed(1)} ms`; // below, nothing had to change
}

function busy(on) {
  $("run").disabled = on;
  $("stop").disabled = !on;
  $("cursor").hidden = !on;
  for (const id of ["adapter-1", "adapter-2", "stack", "file"]) $(id).disabled = on;
}

function fail(error) {
  $("error-text").textContent = error.message;
  $("error").hidden = false;
  $("error").scrollIntoView({ block: "nearest" });
}

function mib(bytes) {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

function short(count) {
  if (count >= 1e9) return `${(count / 1e9).toFixed(1)} billion`;
  return count >= 1e6 ? `${(count / 1e6).toFixed(1)} million` : count.toLocaleString("en");
}
