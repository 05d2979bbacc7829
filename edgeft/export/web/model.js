/** A bundle in memory: prompts in, text out. */
import { openAdapter } from "./adapter.js";
import { readBundle } from "./bundle.js";
import { EdgeftError } from "./errors.js";
import { Lane } from "./lane.js";
import { PromptFormat } from "./prompt.js";
import { Runtime } from "./runtime.js";
import { Sampler } from "./sampling.js";
import { chatRenderer, Detokenizer, Text } from "./text.js";

const ENGINES = { wasm: "ort-wasm-simd-threaded", webgpu: "ort-wasm-simd-threaded.asyncify" };

/** Everything that answers need, loaded from the folder at `address`; `report(file, received, total)` as it comes. */
export async function load(address, { threads = 1, report = () => {} } = {}) {
  const bundle = await readBundle(address);
  const wished = bundle.manifest.device?.run?.provider === "webgpu" ? "webgpu" : "wasm";
  const fallback = wished === "webgpu" ? await withoutGpu() : "";
  const gpu = wished === "webgpu" && !fallback;
  const read = (file) => bundle.read(file, (received, total) => report(file, received, total));
  const [graph, weights, wasm, description] = await Promise.all(
    ["model.onnx", "model.onnx.data", `web/${ENGINES[wished]}.wasm`, "tokenizer.json"].map(read));
  const library = await import("./tokenizers.min.mjs");
  const text = new Text(library, JSON.parse(new TextDecoder().decode(description)));
  const factory = (await import(`./${ENGINES[wished]}.mjs`)).default;
  const runtime = await Runtime.start(factory, wasm.buffer, gpu ? 1 : threads, gpu);
  const session = await runtime.open(graph, "model.onnx.data", weights);
  const [, , vocabulary] = session.outputDims("logits");
  const lane = new Lane(runtime, session, bundle, vocabulary);
  const model = new Model(bundle, text, runtime, lane, await chat(bundle));
  return Object.assign(model, { fallback, threads: gpu ? 0 : threads }); // no threads: it computes on the GPU
}

/** Why WebGPU cannot be used here; empty where it can. */
async function withoutGpu() {
  if (!navigator.gpu) return "this browser has no WebGPU";
  return (await navigator.gpu.requestAdapter()) ? "" : "this browser's WebGPU has no GPU to use";
}

async function chat(bundle) {
  if (!bundle.has("chat_template.jinja")) return null;
  const config = bundle.has("tokenizer_config.json") ? await bundle.json("tokenizer_config.json") : {};
  return chatRenderer(await import("./jinja.js"), await bundle.text("chat_template.jinja"), config);
}

class Model {
  constructor(bundle, text, runtime, lane, render) {
    Object.assign(this, { bundle, text, runtime, lane, render });
    this.adapters = new Map();
    const { eos = [], ...sampling } = bundle.manifest.generation ?? {};
    this.eos = new Set(eos);
    this.sampling = sampling;
  }

  /** An adapter of the bundle, read and checked when it is first asked for. */
  async adapter(name) {
    if (!this.adapters.has(name)) {
      const entry = this.bundle.manifest.adapters[name];
      if (!entry) throw new EdgeftError(`The bundle has no adapter '${name}'.`);
      this.adapters.set(name, openAdapter(name, await this.bundle.read(entry.file), this.bundle));
    }
    return this.adapters.get(name);
  }

  /** An adapter file from elsewhere, under a name of its own. */
  offer(name, bytes, file) {
    if (name in this.bundle.manifest.adapters) throw new EdgeftError(`There is an adapter '${name}' already.`);
    this.adapters.set(name, openAdapter(name, bytes, this.bundle, file));
  }

  /** Adapters with their scales, {name: scale}, checked. */
  async mix(wanted) {
    const mix = [];
    for (const [name, scale] of Object.entries(wanted)) {
      const adapter = await this.adapter(name);
      if (!Number.isFinite(scale)) throw new EdgeftError(`An adapter's scale must be a finite number, found ${scale}.`);
      if (adapter.soft && scale !== 0 && scale !== 1) {
        throw new EdgeftError(`Adapter '${name}' is a soft prompt: it is there or it is not (scale 1 or 0), ` +
          `found ${scale}.`);
      }
      mix.push({ adapter, scale });
    }
    const soft = mix.filter(({ adapter, scale }) => scale && adapter.soft).map(({ adapter }) => `'${adapter.name}'`);
    if (soft.length > 1) {
      throw new EdgeftError(`Adapters ${soft.sort().join(" and ")} are soft prompts, and a request can have one ` +
        "only: each was trained to stand first.");
    }
    return mix;
  }

  /** How prompts are phrased for these adapters. */
  format(mix) {
    const formats = new Map(mix.map(({ adapter }) => [adapter.prompt.key, adapter.prompt]));
    if (formats.size > 1) {
      throw new EdgeftError(`Adapters ${mix.map(({ adapter }) => adapter.name).join(", ")} were trained on different ` +
        "prompt formats or templates. Tick 'as it is' and phrase the prompt yourself.");
    }
    return formats.size ? [...formats.values()][0] : new PromptFormat(this.bundle.manifest.prompt ?? {});
  }

  /** Use these adapters from now on; returns the milliseconds that it took. */
  async switch(wanted) {
    const mix = await this.mix(wanted);
    const start = performance.now();
    this.lane.use(mix);
    return performance.now() - start;
  }

  /**
   * Answer one prompt (text, or token ids): yields pieces of text, and returns what it took.
   *
   * options: adapters={}, max_tokens=128, raw=false, task=null, and those of the sampler; `stopped()` ends it.
   */
  async *stream(prompt, { adapters = {}, max_tokens = 128, raw = false, task = null, stopped = () => false,
                          ...sampling } = {}) {
    const mix = await this.mix(adapters);
    const ids = typeof prompt !== "string" ? prompt
      : this.text.encode(raw ? prompt : this.format(mix).apply(prompt, this.render, task));
    const sampler = new Sampler({ ...this.sampling, ...sampling });
    const start = performance.now();
    const switched = await this.switch(adapters);
    this.checkFits(ids, max_tokens);
    const reused = this.lane.rewind(ids);
    const answer = new Answer(this, ids, max_tokens);
    let logits = await this.lane.feed(ids.slice(reused));
    const first = performance.now();
    for (;;) {
      const token = sampler.choose(logits, [...ids, ...answer.tokens]);
      const piece = answer.take(token);
      if (stopped()) answer.finish ||= "cancelled";
      yield answer.finish && answer.finish !== "eos" ? piece + answer.rest() : piece;
      if (answer.finish) break;
      logits = await this.lane.feed([token]);
    }
    const seconds = (performance.now() - first) / 1000;
    return { tokens: answer.tokens, prompt_tokens: ids, finish: answer.finish, reused_tokens: reused,
             seed: sampler.temperature ? sampler.seed : null, switch_ms: switched, first_token_ms: first - start,
             prefill_tokens_per_s: (ids.length - reused) / Math.max((first - start) / 1000, 1e-9),
             decode_tokens_per_s: answer.tokens.length > 1 ? (answer.tokens.length - 1) / seconds : null,
             memory_mib: this.runtime.memory / 2 ** 20 };
  }

  /** Logits [vocabulary] behind a prompt of token ids. */
  async logits(ids, adapters = {}) {
    await this.switch(adapters);
    this.checkFits(ids, 1);
    return Float32Array.from(await this.lane.feed(ids.slice(this.lane.rewind(ids))));
  }

  checkFits(ids, most) {
    const { context } = this.bundle;
    const { soft } = this.lane;
    if (!(most >= 1)) throw new EdgeftError(`max_tokens must be at least 1, found ${most}.`);
    if (!ids.length) throw new EdgeftError("The prompt is empty: there is nothing to go on from.");
    if (ids.length + soft >= context) {
      const after = soft ? ` after a soft prompt of ${soft}` : "";
      throw new EdgeftError(`The prompt has ${ids.length} tokens${after}, and the bundle's ` +
        `context is ${context}: no room is left for an answer.`);
    }
  }
}

/** The answer while it grows. */
class Answer {
  constructor(model, ids, most) {
    this.decoder = new Detokenizer(model.text);
    this.eos = model.eos;
    this.tokens = [];
    this.finish = "";
    this.most = most;
    this.room = model.bundle.context - model.lane.soft - ids.length;
  }

  take(token) {
    this.tokens.push(token);
    if (this.eos.has(token)) {
      this.finish = "eos";
      return this.decoder.flush();
    }
    const piece = this.decoder.step(token);
    if (this.tokens.length >= Math.min(this.most, this.room)) {
      this.finish = this.tokens.length >= this.most ? "length" : "context";
    }
    return piece;
  }

  rest() {
    return this.decoder.flush();
  }
}
