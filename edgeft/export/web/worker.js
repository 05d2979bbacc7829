/** The model in a thread of its own, so that the page stays alive while it computes. */
import { EdgeftError } from "./errors.js";
import { load } from "./model.js";

let model = null;
let running = null; // of the request that runs: {id, stopped}

const actions = {
  async load({ address, threads }) {
    const report = (file, received, total) => postMessage({ kind: "progress", file, received, total });
    model = await load(new URL(address), { threads, report });
    const { manifest, context } = model.bundle;
    return { adapters: manifest.adapters, default_adapter: manifest.default_adapter, context, base: manifest.base,
             quant: manifest.quant, sampling: model.sampling, threads: model.threads, fallback: model.fallback,
             memory_mib: model.runtime.memory / 2 ** 20 };
  },

  async offer({ name, bytes, file }) {
    model.offer(name, bytes, file);
    return describe(await model.adapter(name));
  },

  async adapter({ name }) {
    return describe(await model.adapter(name));
  },

  async switch({ adapters }) {
    return { switch_ms: await model.switch(adapters) };
  },

  async logits({ ids, adapters }) {
    return { logits: Array.from(await model.logits(ids, adapters)) };
  },

  async encode({ text }) {
    return { ids: model.text.encode(text) };
  },

  async generate({ id, prompt, options }) {
    running = { id, stopped: false };
    const request = running;
    try {
      const pieces = model.stream(prompt, { ...options, stopped: () => request.stopped });
      for (;;) {
        const { value, done } = await pieces.next();
        if (done) return value;
        if (value) postMessage({ kind: "piece", id, text: value });
        await breathe(); // a message to stop may be there
      }
    } finally {
      running = null;
    }
  },
};

function describe(adapter) {
  const { name, rank, soft, length, prompt } = adapter;
  return { name, rank, soft, length, tasks: prompt.tasks, kind: prompt.kind };
}

/** Let messages in; a timer would wait four milliseconds each time. */
function breathe() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

onmessage = async ({ data }) => {
  if (data.action === "stop") {
    if (running) running.stopped = true;
    return;
  }
  try {
    if (running) throw new EdgeftError("An answer is still being written. Stop it first.");
    if (!model && data.action !== "load") throw new EdgeftError("The model is not loaded yet.");
    postMessage({ kind: "done", id: data.id, result: await actions[data.action](data) });
  } catch (error) {
    postMessage({ kind: "failed", id: data.id, message: message(error) });
  }
};

function message(error) {
  if (error instanceof EdgeftError) return error.message;
  if (error instanceof RangeError) return `This browser has not enough memory for the model (${error.message}).`;
  return `Something went wrong that should not have: ${error.message ?? error}`;
}
