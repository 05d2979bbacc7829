/**
 * onnxruntime-web's WebAssembly module, driven through its C functions.
 *
 * Its own JavaScript copies every input and output at every run, the whole cache included, and does not take inputs
 * that have a default, which our slots are. Here tensors are made once in the module's memory: past and present are
 * one buffer, and an adapter's matrices stay where they are. The functions are those of lib/wasm/wasm-types.ts of the
 * version that export/web.toml pins.
 */
import { EdgeftError } from "./errors.js";
import { product } from "./safetensors.js";

const CPU = 1; // DataLocation
const GPU = 4;
const KINDS = { float32: [1, Float32Array], int64: [7, BigInt64Array] };
const ALL_OPTIMIZATIONS = 99;
const WARNINGS = 2;
const ERRORS = 3;

/** The module, once it runs. */
export class Runtime {
  /**
   * `factory`: the default export of its .mjs; `wasmBinary`: its .wasm; more than one thread needs isolation.
   * `gpu`: compute by WebGPU, which the module must have been built with.
   */
  static async start(factory, wasmBinary, threads, gpu) {
    const module = await factory({ numThreads: threads, wasmBinary, locateFile: (file) => file,
                                   printErr: () => {} });
    const runtime = new Runtime(module, gpu);
    runtime.check(await module._OrtInit(threads, ERRORS), "onnxruntime cannot be started");
    module.asyncInit?.();
    if (gpu) module.webgpuInit((device) => (runtime.device = device));
    return runtime;
  }

  constructor(module, gpu) {
    this.module = module;
    this.gpu = gpu;
    this.device = null; // WebGPU's, once a graph is open
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
    const pattern = !this.gpu; // memory patterns are for the processor
    const options = module._OrtCreateSessionOptions(ALL_OPTIMIZATIONS, true, pattern, 0, false, 0, 0, ERRORS, 0, 0);
    const place = this.allocate(graph.byteLength);
    try {
      if (this.gpu) {
        module.webgpuRegisterDevice(); // that this session's device is the default one, which it then makes known
        const name = this.string("WebGPU");
        this.check(await module._OrtAppendExecutionProvider(options, name, 0, 0, 0), "onnxruntime has no WebGPU here");
      }
      module.HEAPU8.set(graph, place);
      module.mountExternalData(weightsName, weights);
      const session = await module._OrtCreateSession(place, graph.byteLength, options);
      this.check(session ? 0 : 1, "onnxruntime cannot open the graph");
      module.webgpuOnCreateSession?.(session);
      return new Session(this, session);
    } finally {
      module.unmountExternalData();
      module._free(place);
      module._OrtReleaseSessionOptions(options);
    }
  }
}

/** A tensor in the module's memory. */
class Tensor {
  constructor(runtime, kind, dims) {
    const [, View] = KINDS[kind];
    Object.assign(this, { runtime, dims, View, length: product(dims) });
    this.place = runtime.allocate(this.length * View.BYTES_PER_ELEMENT);
    this.data.fill(View === BigInt64Array ? 0n : 0);
    this.handle = handleFor(runtime, kind, dims, this.place, CPU);
  }

  /** Put values in, from an index on. */
  write(values, start = 0) {
    this.data.set(values, start);
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

/** A tensor of float32 in the GPU's memory. */
class GpuTensor {
  constructor(runtime, session, dims) {
    Object.assign(this, { runtime, dims });
    const size = Math.ceil((4 * product(dims)) / 16) * 16;
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    this.buffer = runtime.device.createBuffer({ size, usage }); // zeros, as WebGPU has it
    const place = runtime.module.webgpuRegisterBuffer(this.buffer, session);
    this.handle = handleFor(runtime, "float32", dims, place, GPU);
  }

  write(values, start = 0) {
    this.runtime.device.queue.writeBuffer(this.buffer, 4 * start, values);
  }

  release() {
    this.runtime.module._OrtReleaseTensor(this.handle);
    this.runtime.module.webgpuUnregisterBuffer(this.buffer);
    this.buffer.destroy();
  }
}

function handleFor(runtime, kind, dims, place, location) {
  const { module } = runtime;
  const [code, View] = KINDS[kind];
  const stack = module.stackSave();
  const shape = module.stackAlloc(4 * Math.max(dims.length, 1));
  dims.forEach((size, index) => module.setValue(shape + 4 * index, size, "i32"));
  const size = product(dims) * View.BYTES_PER_ELEMENT;
  const handle = module._OrtCreateTensor(code, place, size, shape, dims.length, location);
  module.stackRestore(stack);
  runtime.check(handle ? 0 : 1, "onnxruntime cannot make a tensor");
  return handle;
}

/** One open graph. */
class Session {
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

  /** A tensor of float32 zeros where this graph computes, for what stays from one run to the next. */
  tensor(dims) {
    return this.runtime.gpu ? new GpuTensor(this.runtime, this.handle, dims) : this.runtime.tensor("float32", dims);
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
        const code = module._OrtGetInputOutputMetadata(this.handle, index, place, place + 4);
        this.runtime.check(code, "onnxruntime does not tell the graph's outputs");
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
    const counts = [inputs.size, outputs.size];
    const code = await module._OrtRun(this.handle, inNames, ins, counts[0], outNames, counts[1], outs, this.options);
    module.stackRestore(stack);
    this.runtime.check(code, "onnxruntime cannot compute this step");
  }
}

function handleOf(tensor) {
  return tensor.handle;
}
