/** One adapter's file, checked against the bundle. */
import { Faults } from "./errors.js";
import { PromptFormat } from "./prompt.js";
import { TensorFile } from "./safetensors.js";

const PREFIX = /^prefix\.(0|[1-9]\d{0,4})\.(key|value)$/;
const AGAIN = "Train it on this base, or export the bundle again from the base it was trained on.";

/** Open an adapter; an EdgeftError lists all of it that does not fit this bundle. */
export function openAdapter(name, bytes, bundle, file = `${name}.safetensors`) {
  const tensors = new TensorFile(file, bytes);
  const faults = new Faults(`${file}: cannot be loaded into this bundle`);
  const found = tensors.metadata.base_fingerprint ?? "";
  if (found !== bundle.fingerprint) {
    faults.add("base fingerprint", bundle.fingerprint.slice(0, 12), found.slice(0, 12) || "none");
  }
  for (const key of tensors.names) checkTensor(key, tensors, bundle, faults);
  for (const key of tensors.names) {
    if (!tensors.get(key).every(Number.isFinite)) faults.add(`${key}: holds NaN or infinite numbers`);
  }
  if (!faults.lines.length && !tensors.names.some((key) => acts(key, tensors))) {
    faults.add("it would change nothing: it holds no slot, or only zeros");
  }
  faults.throwIfAny(AGAIN);
  return new Adapter(name, tensors, bundle);
}

/** An adapter in memory. */
class Adapter {
  constructor(name, tensors, bundle) {
    this.name = name;
    this.tensors = tensors;
    this.prompt = PromptFormat.fromMetadata(tensors.metadata);
    this.rank = Math.max(0, ...tensors.names.filter((key) => key.endsWith(".A")).map((key) => tensors.shape(key)[1]));
    this.soft = tensors.names.some((key) => PREFIX.test(key));
    this.length = this.soft ? tensors.shape("prefix.0.key")[1] : 0; // tokens of the context that it takes
    this.layers = bundle.layers.length;
  }

  rankOf(module) {
    return this.tensors.shape(`${module}.A`)[1] ?? 0;
  }
}

function checkTensor(key, tensors, bundle, faults) {
  const module = key.slice(0, key.lastIndexOf("."));
  const part = key.slice(key.lastIndexOf(".") + 1);
  if (PREFIX.test(key)) checkPrefix(key, tensors, bundle, faults);
  else if ((part === "A" || part === "B") && bundle.widths.has(module)) {
    checkPair(key, module, part, tensors, bundle.widths.get(module), faults);
  } else if (part === "scale") {
    faults.add(`${key}: factors (IA3, DoRA) are not for the browser; export with --merge`);
  } else faults.add(`${key}: the bundle has no such slot`);
}

/** One half of a low-rank pair: its shape, and its other half. */
function checkPair(key, module, part, tensors, [wide, out], faults) {
  const first = part === "A";
  const shape = tensors.shape(key);
  const partner = tensors.shape(`${module}.${first ? "B" : "A"}`);
  if (shape.length !== 2 || shape[first ? 0 : 1] !== (first ? wide : out)) {
    faults.add(key, first ? [wide, "rank"] : ["rank", out], shape);
  } else if (partner.length !== 2 || shape[first ? 1 : 0] !== partner[first ? 0 : 1]) {
    faults.add(`${key}: has no partner of the same rank`);
  }
}

/** Keys or values of one layer: every layer must have both, all of one length, below the context. */
function checkPrefix(key, tensors, bundle, faults) {
  const layer = Number(key.split(".")[1]);
  const shape = tensors.shape(key);
  const [heads, size] = bundle.layers[layer] ?? [];
  const whole = bundle.layers.every((_, index) =>
    tensors.has(`prefix.${index}.key`) && tensors.has(`prefix.${index}.value`));
  if (heads === undefined) faults.add(`${key}: the bundle has no such slot`);
  else if (!whole) faults.add(`${key}: other layers' keys or values are missing`);
  else if (shape.length !== 3 || shape[0] !== heads || shape[2] !== size || shape[1] < 1 ||
      shape[1] !== tensors.shape("prefix.0.key")[1]) {
    faults.add(key, [heads, "length", size], shape);
  } else if (shape[1] >= bundle.context) {
    faults.add(key, `shorter than the context of ${bundle.context} tokens`, `${shape[1]} tokens`);
  }
}

/** Whether a tensor, with its partner if it is half of a pair, changes anything. */
function acts(key, tensors) {
  const module = key.slice(0, key.lastIndexOf("."));
  const some = (name) => tensors.get(name).some((value) => value !== 0);
  return PREFIX.test(key) || (some(`${module}.A`) && some(`${module}.B`));
}
