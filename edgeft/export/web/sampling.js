/** From logits to a token, as edgeft/run/sampling.py does it. */
import { EdgeftError } from "./errors.js";
import { Pcg64 } from "./random.js";

/** One request's way of choosing; temperature 0 is greedy. The order of the steps is that of the runner in Python. */
export class Sampler {
  constructor({ temperature = 0, top_k = 0, top_p = 1, min_p = 0, repetition_penalty = 1, seed = null } = {}) {
    const checks = { temperature: temperature >= 0, top_k: top_k >= 0, top_p: top_p > 0 && top_p <= 1,
                     min_p: min_p >= 0 && min_p <= 1, repetition_penalty: repetition_penalty > 0 };
    const values = { temperature, top_k, top_p, min_p, repetition_penalty };
    const wrong = Object.keys(checks).filter((name) => !checks[name]).map((name) => `${name} ${values[name]}`);
    if (wrong.length) throw new EdgeftError(`Out of range: ${wrong.join(", ")}.`);
    Object.assign(this, values);
    this.seed = seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
    this.random = new Pcg64(this.seed);
  }

  /** Choose the next token; `seen` are the request's tokens so far. */
  choose(given, seen) {
    const logits = this.repetition_penalty === 1 ? given : this.penalized(given, seen);
    const best = largest(logits);
    if (!Number.isFinite(logits[best])) {
      throw new EdgeftError("The model's output is not a number: the bundle or an adapter is broken.");
    }
    if (this.temperature === 0) return best;
    const top = logits[best];
    return this.draw(Float32Array.from(logits, (value) => Math.fround(value - top) / this.temperature));
  }

  penalized(given, seen) {
    const logits = given.slice();
    for (const token of new Set(seen)) {
      logits[token] *= logits[token] > 0 ? 1 / this.repetition_penalty : this.repetition_penalty;
    }
    return logits;
  }

  /** Draw from logits whose largest is 0. */
  draw(logits) {
    let tokens = Array.from(logits.keys());
    if (this.min_p > 0) tokens = tokens.filter((token) => logits[token] >= Math.log(this.min_p));
    const likeliest = (one, other) => logits[other] - logits[one] || one - other;
    if (this.top_k > 0 && this.top_k < tokens.length) {
      tokens = tokens.sort(likeliest).slice(0, this.top_k).sort((one, other) => one - other);
    }
    const total = tokens.reduce((sum, token) => sum + Math.exp(logits[token]), 0);
    const weight = (token) => Math.exp(logits[token]) / total;
    if (this.top_p < 1) {
      tokens.sort(likeliest);
      let sum = 0;
      const last = tokens.findIndex((token) => (sum += weight(token)) >= this.top_p);
      tokens = tokens.slice(0, last < 0 ? tokens.length : last + 1);
    }
    let edge = 0;
    const edges = tokens.map((token) => (edge += weight(token)));
    const place = edges.findIndex(((drawn) => (value) => value > drawn)(this.random.random() * edge));
    return tokens[place < 0 ? tokens.length - 1 : place];
  }
}

function largest(values) {
  let best = 0;
  for (let index = 1; index < values.length; index += 1) if (values[index] > values[best]) best = index;
  return Number.isNaN(values[0]) ? 0 : best;
}
