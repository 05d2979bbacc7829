/**
 * onnxruntime-web's WebAssembly module, driven through its C functions.
 *
 * Its own JavaScript copies every input and output at every run, the whole cache included, and does not take inputs
 * that have a default, which our slots are. Here tensors are made once in the module's memory: past and present are
 * one buffer, and an adapter's matrices stay where they are. The functions are those of lib/wasm/wasm-types.ts of the
 * version that export/web.toml pins.
 */
import { EdgeftError } from "./errors.js";

const CPU = 1; // DataLocation
const KINDS = { float32: [1, Float32Array], int64: [7, BigInt64Array] };
const ALL_OPTIMIZATIONS = 99;
const WARNINGS = 2;
const ERRORS = 3;

/** The module, once it runs. */
export class Runtime {
  /** `factory`: the default export of its .mjs; `wasmBinary`: its .wasm; more than one thread needs isolation. */
  static async start(factory, wasmBinary, threads) {
    const module = await factory({ numThreads: threads, wasmBinary, locateFile: (file) => file,
                                   printErr: () => {} });
    const runtime = new Runtime(module);
    runtime.check(module._OrtInit(threads, ERRORS), "onnxruntime cannot be started");
    return runtime;
  }

  constructor(module) {
    this.module = module;
  }

  /** Bytes of memory that the module has taken so far. */
  get memory() {
    this.module.getValue(0, "i8"); // another thread may have made it grow
    return this.module.HEAPU8.byteLength;
  }

  /** Throw what onnxruntime says went wrong, unless the code is 0. */
  check(code, what) {
    if (code === 0) return;
    const { module } = this;
    const stack = module.stackSave();
    const place = module.stackAlloc(8);
    module._OrtGetLastError(place, place + 4);
    const said = module.getValue(place + 4, "*");
    const text = said ? module.UTF8ToString(said) : "no reason given";
    module.stackRestore(stack);
    throw new EdgeftError(`${what} (${text.split("\n")[0]})`);
  }

  allocate(size) {
    const place = this.module._malloc(Math.max(size, 16));
    if (!place) throw new EdgeftError(`There is no memory left for ${Math.ceil(size / 2 ** 20)} MiB in this page.`);
    return place;
  }

  string(text) {
    const size = this.module.lengthBytesUTF8(text) + 1;
    const place = this.allocate(size);
    this.module.stringToUTF8(text, place, size);
    return place;
  }

  /** A tensor of zeros that stays until it is released. */
  tensor(kind, dims) {
    return new Tensor(this, kind, dims);
  }

  /** Open a graph over its weights, which the graph names `weightsName`. */
  async open(graph, weightsName, weights) {
    const { module } = this;
    const options = module._OrtCreateSessionOptions(ALL_OPTIMIZATIONS, true, true, 0, false, 0, 0, ERRORS, 0, 0);
    const place = this.allocate(graph.byteLength);
    try {
      module.HEAPU8.set(graph, place);
      module.mountExternalData(weightsName, weights);
      const session = await module._OrtCreateSession(place, graph.byteLength, options);
      this.check(session ? 0 : 1, "onnxruntime cannot open the graph");
      return new Session(this, session);
    } finally {
      module.unmountExternalData();
      module._free(place);
      module._OrtReleaseSessionOptions(options);
    }
  }
}

/** A tensor in the module's memory. */
export class Tensor {
  constructor(runtime, kind, dims) {
    const { module } = runtime;
    const [code, View] = KINDS[kind];
    this.runtime = runtime;
    this.dims = dims;
    this.View = View;
    this.length = dims.reduce((total, size) => total * size, 1);
    this.place = runtime.allocate(this.length * View.BYTES_PER_ELEMENT);
    this.data.fill(View === BigInt64Array ? 0n : 0);
    const stack = module.stackSave();
    const shape = module.stackAlloc(4 * Math.max(dims.length, 1));
    dims.forEach((size, index) => module.setValue(shape + 4 * index, size, "i32"));
    const size = this.length * View.BYTES_PER_ELEMENT;
    this.handle = module._OrtCreateTensor(code, this.place, size, shape, dims.length, CPU);
    module.stackRestore(stack);
    runtime.check(this.handle ? 0 : 1, "onnxruntime cannot make a tensor");
  }

  /** Its elements, in place; made anew each time, since memory that grows leaves old views empty. */
  get data() {
    const { module } = this.runtime;
    module.getValue(this.place, "i8");
    return new this.View(module.HEAPU8.buffer, this.place, this.length);
  }

  release() {
    this.runtime.module._OrtReleaseTensor(this.handle);
    this.runtime.module._free(this.place);
  }
}

/** One open graph. */
export class Session {
  constructor(runtime, handle) {
    this.runtime = runtime;
    this.handle = handle;
    this.names = new Map();
    this.options = runtime.module._OrtCreateRunOptions(WARNINGS, 0, false, 0);
  }

  name(text) {
    if (!this.names.has(text)) this.names.set(text, this.runtime.string(text));
    return this.names.get(text);
  }

  /** The sizes that an output declares; 0 for those that are open. */
  outputDims(wanted) {
    const { module } = this.runtime;
    const stack = module.stackSave();
    const place = module.stackAlloc(8);
    try {
      module._OrtGetInputOutputCount(this.handle, place, place + 4);
      const [inputs, outputs] = [0, 4].map((offset) => module.getValue(place + offset, "i32"));
      for (let index = inputs; index < inputs + outputs; index += 1) {
        this.runtime.check(module._OrtGetInputOutputMetadata(this.handle, index, place, place + 4), "the graph's outputs");
        const [name, about] = [0, 4].map((offset) => module.getValue(place + offset, "*"));
        const text = module.UTF8ToString(name);
        const count = module.getValue(about + 4, "i32");
        const dims = Array.from({ length: count }, (_, axis) => module.getValue(about + 8 + 4 * (axis + count), "i32"));
        module._OrtFree(about);
        module._OrtFree(name);
        if (text === wanted) return dims;
      }
      throw new EdgeftError(`The graph has no output '${wanted}'.`);
    } finally {
      module.stackRestore(stack);
    }
  }

  /** Compute: `inputs` and `outputs` map names to tensors, and the outputs' memory is written. */
  async run(inputs, outputs) {
    const { module } = this.runtime;
    const stack = module.stackSave();
    const lists = [[...inputs.keys()].map((name) => this.name(name)), [...inputs.values()].map(handleOf),
                   [...outputs.keys()].map((name) => this.name(name)), [...outputs.values()].map(handleOf)];
    const [inNames, ins, outNames, outs] = lists.map((values) => {
      const place = module.stackAlloc(4 * values.length);
      values.forEach((value, index) => module.setValue(place + 4 * index, value, "*"));
      return place;
    });
    const code = await module._OrtRun(this.handle, inNames, ins, inputs.size, outNames, outputs.size, outs, this.options);
    module.stackRestore(stack);
    this.runtime.check(code, "onnxruntime cannot compute this step");
  }
}

function handleOf(tensor) {
  return tensor.handle;
}
