/** Safetensors files: a capped header, every range checked before a tensor is touched. */
import { EdgeftError } from "./errors.js";

const MAX_HEADER = 32 << 20;
const WIDTHS = { F32: 4, F16: 2, BF16: 2 }; // what adapters are stored in

/** One file in memory: `shape(name)` and `get(name)` (float32 whatever is stored); `metadata` is its header's. */
export class TensorFile {
  constructor(name, bytes) {
    this.name = name;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const length = bytes.byteLength >= 8 ? Number(view.getBigUint64(0, true)) : -1;
    if (length < 2 || length > Math.min(MAX_HEADER, bytes.byteLength - 8)) {
      throw new EdgeftError(`${name}: is not a safetensors file, or was cut short. Choose an adapter's .safetensors ` +
        "file, or copy it again.");
    }
    this.entries = new Map();
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes.slice(8, 8 + length));
      const header = JSON.parse(text);
      this.metadata = strings(header.__metadata__ ?? {});
      for (const [key, entry] of Object.entries(header)) {
        if (key !== "__metadata__") this.entries.set(key, checked(key, entry));
      }
    } catch (error) {
      throw new EdgeftError(`${name}: has a broken safetensors header (${error.message})`);
    }
    this.data = bytes.subarray(8 + length);
    this.checkRanges();
  }

  /** Tensors stand one behind the other, and all bytes belong to one. */
  checkRanges() {
    let position = 0;
    const inOrder = [...this.entries].sort(([, one], [, other]) => one.begin - other.begin || one.end - other.end);
    for (const [key, { kind, shape, begin, end }] of inOrder) {
      const wanted = product(shape) * WIDTHS[kind];
      if (begin !== position || end - begin !== wanted || end > this.data.byteLength) {
        throw new EdgeftError(`${this.name}: tensor '${key}' ${kind}[${shape}] claims bytes ${begin} to ${end}, ` +
          `which its shape or the file (${this.data.byteLength} bytes of data) denies`);
      }
      position = end;
    }
    if (position !== this.data.byteLength) {
      throw new EdgeftError(`${this.name}: ${this.data.byteLength - position} bytes belong to no tensor`);
    }
  }

  get names() {
    return [...this.entries.keys()];
  }

  has(key) {
    return this.entries.has(key);
  }

  shape(key) {
    return this.entries.get(key)?.shape ?? [];
  }

  get(key) {
    const { kind, begin, end } = this.entries.get(key);
    const raw = this.data.slice(begin, end); // a copy, so that it is aligned
    if (kind === "F32") return new Float32Array(raw.buffer);
    const bits = new Uint16Array(raw.buffer);
    return kind === "BF16" ? fromBfloat16(bits) : Float32Array.from(bits, fromFloat16);
  }
}

/** How many elements a shape has. */
export function product(shape) {
  return shape.reduce((total, size) => total * size, 1);
}

function checked(key, { dtype, shape, data_offsets: offsets }) {
  if (!(dtype in WIDTHS)) throw new Error(`${key}: dtype ${dtype} is not one of ${Object.keys(WIDTHS).join(", ")}`);
  const numbers = [...shape, ...offsets];
  if (offsets.length !== 2 || !numbers.every((number) => Number.isSafeInteger(number) && number >= 0)) {
    throw new Error(`${key}: sizes must be whole numbers, found ${numbers}`);
  }
  return { kind: dtype, shape, begin: offsets[0], end: offsets[1] };
}

function strings(metadata) {
  if (typeof metadata !== "object" || !Object.values(metadata).every((text) => typeof text === "string")) {
    throw new Error("metadata must map strings to strings");
  }
  return metadata;
}

function fromBfloat16(bits) {
  return new Float32Array(Uint32Array.from(bits, (half) => half << 16).buffer);
}

function fromFloat16(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
