/** numpy's PCG64, seeded by its SeedSequence: a seed gives the draws that it gives the runner in Python. */
const WORD = 0xffffffff;
const HALF = (1n << 64n) - 1n;
const WHOLE = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

export class Pcg64 {
  constructor(seed) {
    const [seedHigh, seedLow, sequenceHigh, sequenceLow] = states(seed);
    this.increment = ((((sequenceHigh << 64n) | sequenceLow) << 1n) | 1n) & WHOLE;
    this.state = 0n;
    this.step();
    this.state = (this.state + ((seedHigh << 64n) | seedLow)) & WHOLE;
    this.step();
  }

  step() {
    this.state = (this.state * MULTIPLIER + this.increment) & WHOLE;
  }

  /** The next number of [0, 1). */
  random() {
    this.step();
    const mixed = ((this.state >> 64n) ^ this.state) & HALF;
    const turn = this.state >> 122n;
    const bits = ((mixed >> turn) | (mixed << ((64n - turn) & 63n))) & HALF;
    return Number(bits >> 11n) * 2 ** -53;
  }
}

/** Four 64-bit words of SeedSequence(seed).generate_state. */
function states(seed) {
  const pool = mixed(words(BigInt(seed)));
  let constant = 0x8b51f9dd;
  const made = [];
  for (let index = 0; index < 8; index += 1) {
    let value = (pool[index % 4] ^ constant) >>> 0;
    constant = Math.imul(constant, 0x58f38ded) >>> 0;
    value = Math.imul(value, constant) >>> 0;
    made.push((value ^ (value >>> 16)) >>> 0);
  }
  return [0, 2, 4, 6].map((index) => BigInt(made[index]) | (BigInt(made[index + 1]) << 32n));
}

function words(seed) {
  const made = [];
  for (let rest = seed; rest > 0n; rest >>= 32n) made.push(Number(rest & BigInt(WORD)));
  return made.length ? made : [0];
}

function mixed(entropy) {
  let constant = 0x43b0d7e5;
  const hash = (word) => {
    let value = (word ^ constant) >>> 0;
    constant = Math.imul(constant, 0x931e8875) >>> 0;
    value = Math.imul(value, constant) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mix = (one, other) => {
    const value = (Math.imul(0xca01f9dd, one) - Math.imul(0x4973f715, other)) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const pool = [0, 1, 2, 3].map((index) => hash(entropy[index] ?? 0));
  for (let source = 0; source < 4; source += 1) {
    for (let target = 0; target < 4; target += 1) {
      if (source !== target) pool[target] = mix(pool[target], hash(pool[source]));
    }
  }
  for (const word of entropy.slice(4)) {
    for (let target = 0; target < 4; target += 1) pool[target] = mix(pool[target], hash(word));
  }
  return pool;
}
