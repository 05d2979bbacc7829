/** Adapters' matrices as the contract's graph takes them: side by side behind a gate. */
import { product } from "./safetensors.js";

/**
 * Shapes of `{group}.A [in, k * R]` and `{group}.B [k * R, out]` for so much rank in all.
 */
export function shapes(group, rank) {
  const columns = group.modules.length * rank;
  return [[group.in, columns], [columns, group.out.reduce((one, other) => one + other, 0)]];
}

/**
 * One group's A and B: module i of k owns columns i*R to (i+1)*R of A and, in those rows of B, its own columns. What an
 * adapter leaves alone stays zero.
 */
export function fill(group, adapters, rank) {
  const [[, columns], [, width]] = shapes(group, rank);
  const [a, b] = shapes(group, rank).map((dims) => new Float32Array(product(dims)));
  let out = 0;
  group.modules.forEach((module, index) => {
    let column = index * rank;
    for (const adapter of adapters) {
      const size = adapter.rankOf(module);
      if (size) {
        copy(adapter.tensors.get(`${module}.A`), size, a, columns, 0, column);
        copy(adapter.tensors.get(`${module}.B`), group.out[index], b, width, column, out);
      }
      column += adapter.rank;
    }
    out += group.out[index];
  });
  return [a, b];
}

/** Each adapter's scale on its own columns. */
export function gate(mix, total) {
  const values = new Float32Array(total);
  let column = 0;
  for (const { adapter, scale } of mix) {
    values.fill(scale, column, column + adapter.rank);
    column += adapter.rank;
  }
  return values;
}

/** A matrix of so many columns into a wider one, at a row and a column. */
function copy(from, columns, to, width, row, column) {
  for (let line = 0; line * columns < from.length; line += 1) {
    to.set(from.subarray(line * columns, (line + 1) * columns), (row + line) * width + column);
  }
}
