/** One request's keys and values, and the passes over them; what the last request left is used again. */
import { EdgeftError } from "./errors.js";
import { fill, gate, shapes } from "./packing.js";

const CHUNK = 128; // tokens of a prompt in one pass

/** Past and present share one buffer per layer: nothing is copied per token (GroupQueryAttention). */
export class Lane {
  constructor(runtime, session, bundle, vocabulary) {
    Object.assign(this, { runtime, session, bundle });
    this.capacity = 0;
    this.length = 0; // rows that hold something, soft prompt included
    this.tokens = []; // what those behind the soft prompt are
    this.soft = 0;
    this.key = null; // of the adapters that they were computed with
    this.slots = new Map();
    this.ids = new Map(); // by width
    this.buffers = new Map();
    this.logits = runtime.tensor("float32", [1, 1, vocabulary]);
    this.keep = runtime.tensor("int64", [1]);
    this.keep.data[0] = 1n;
  }

  /** Room for so many tokens; what is held is kept. */
  grow(capacity) {
    if (capacity <= this.capacity) return;
    const ample = this.runtime.gpu ? this.bundle.context : Math.max(capacity, 256, 2 * this.capacity);
    const wanted = Math.min(this.bundle.context, ample); // all at once on a GPU, whose memory we do not read back
    this.bundle.layers.forEach(([heads, size], layer) => {
      for (const part of ["key", "value"]) {
        const name = `past_key_values.${layer}.${part}`;
        const old = this.buffers.get(name);
        const fresh = this.session.tensor([1, heads, wanted, size]);
        if (old) {
          place(old.data, this.capacity, fresh, wanted, heads, size, this.length);
          old.release();
        }
        this.buffers.set(name, fresh);
      }
    });
    this.mask?.release();
    this.mask = this.runtime.tensor("int64", [1, wanted]);
    this.capacity = wanted;
  }

  /** These adapters from now on: [{adapter, scale}]. Tokens that others computed are forgotten. */
  use(mix) {
    const acting = mix.filter(({ scale }) => scale !== 0);
    const key = JSON.stringify(acting.map(({ adapter, scale }) => [adapter.name, scale]).sort());
    if (key === this.key) return;
    this.key = null; // until all of it is in place
    const soft = acting.map(({ adapter }) => adapter).find((adapter) => adapter.soft);
    this.pack(acting.filter(({ adapter }) => adapter.rank));
    this.grow((soft?.length ?? 0) + 1);
    this.soft = this.length = soft?.length ?? 0;
    this.tokens = [];
    for (const [name, buffer] of soft ? this.buffers : []) {
      const [, layer, part] = name.split(".");
      const [, heads, , size] = buffer.dims;
      place(soft.tensors.get(`prefix.${layer}.${part}`), soft.length, buffer, this.capacity, heads, size, soft.length);
    }
    this.key = key;
  }

  /** Matrices of these adapters into the slots; those of the same adapters stay, and the gate alone changes. */
  pack(mix) {
    const adapters = mix.map(({ adapter }) => adapter);
    const names = adapters.map(({ name }) => name).join("+");
    const rank = adapters.reduce((total, adapter) => total + adapter.rank, 0);
    if (this.packed !== names) {
      for (const tensor of this.slots.values()) tensor.release();
      this.slots.clear();
      this.packed = null; // until all of them are there
      for (const group of rank ? this.bundle.groups : []) {
        const made = fill(group, adapters, rank);
        shapes(group, rank).forEach((dims, index) => {
          const tensor = this.session.tensor(dims);
          tensor.write(made[index]);
          this.slots.set(`${group.name}.${"AB"[index]}`, tensor);
        });
      }
      if (rank) this.slots.set("adapter_gate", this.session.tensor([1, 1, rank]));
      this.packed = names;
    }
    this.slots.get("adapter_gate")?.write(gate(mix, rank));
  }

  /** Go back to the longest beginning that `ids` shares with what is held, but for the last; returns its length. */
  rewind(ids) {
    let common = 0;
    while (common < Math.min(ids.length - 1, this.tokens.length) && ids[common] === this.tokens[common]) common += 1;
    this.tokens.length = common;
    this.length = this.soft + common;
    return common;
  }

  /** Take tokens in; logits [vocabulary] behind the last of them, in memory that the next pass overwrites. */
  async feed(ids) {
    for (let start = 0; start < ids.length; start += CHUNK) await this.pass(ids.slice(start, start + CHUNK));
    return this.logits.data;
  }

  async pass(ids) {
    const after = this.length + ids.length;
    if (after > this.bundle.context) {
      throw new EdgeftError(`The bundle's context is ${this.bundle.context} tokens, and ${after} are wanted.`);
    }
    this.grow(after);
    this.mask.data.fill(1n, 0, after).fill(0n, after);
    const given = this.widthOf(ids.length);
    given.write(ids.map(BigInt));
    const inputs = new Map([["input_ids", given], ["attention_mask", this.mask], ["logits_to_keep", this.keep],
                            ...this.buffers, ...this.slots]);
    const outputs = new Map([["logits", this.logits]]);
    for (const [name, buffer] of this.buffers) outputs.set(name.replace("past_key_values", "present"), buffer);
    await this.session.run(inputs, outputs);
    this.length = after;
    this.tokens.push(...ids);
  }

  widthOf(width) {
    if (!this.ids.has(width)) this.ids.set(width, this.runtime.tensor("int64", [1, width]));
    return this.ids.get(width);
  }
}

/** The first `length` rows of each head from one [heads, rows, size] array to a tensor of more rows. */
function place(from, fromRows, to, toRows, heads, size, length) {
  for (let head = 0; head < heads; head += 1) {
    const start = head * fromRows * size;
    to.write(from.subarray(start, start + length * size), head * toRows * size);
  }
}
