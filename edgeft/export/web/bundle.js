/** A bundle's manifest, and its files, whose digests are compared before a byte of them is used. */
import { EdgeftError, Faults } from "./errors.js";

const FORMAT = 1;
const ADAPTER = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

/** Read bundle.json of the folder at `address` (a URL that ends in a slash). */
export async function readBundle(address) {
  const manifest = await (await get(new URL("bundle.json", address), "no-cache")).json();
  if (manifest.format !== FORMAT) {
    throw new EdgeftError(`bundle.json: bundle format declared ${manifest.format}, this page reads ${FORMAT}.`);
  }
  return new Bundle(address, manifest);
}

/** A bundle's folder and manifest. */
export class Bundle {
  constructor(address, manifest) {
    this.address = address;
    this.manifest = manifest;
    this.check();
    this.fingerprint = manifest.base.fingerprint;
    this.context = manifest.context;
    this.groups = manifest.slots.lowrank ?? [];
    this.layers = manifest.slots.prefix ?? [];
    this.widths = new Map(); // of every module with a slot: [in, out]
    for (const group of this.groups) {
      group.modules.forEach((module, index) => this.widths.set(module, [group.in, group.out[index]]));
    }
  }

  check() {
    const faults = new Faults("bundle.json: is not a bundle that this page can run");
    const { manifest } = this;
    const wanted = { base: "object", graph: "object", slots: "object", adapters: "object", files: "object" };
    for (const [key, kind] of Object.entries(wanted)) {
      if (typeof manifest[key] !== kind || manifest[key] === null) faults.add(key, kind, typeof manifest[key]);
    }
    if (!Number.isInteger(manifest.context)) faults.add("context", "a whole number", manifest.context);
    faults.throwIfAny("Export it again.");
    if (manifest.task !== "text-generation") faults.add("task", "text-generation", manifest.task);
    if (manifest.graph.cache !== "shared") faults.add("graph.cache", "shared", manifest.graph.cache);
    if (!Array.isArray(manifest.slots.prefix) || !manifest.slots.prefix.length) {
      faults.add("slots.prefix: is missing, and with it the shapes of the caches");
    }
    for (const name of ["model.onnx", "model.onnx.data", "tokenizer.json"]) {
      if (!(name in manifest.files)) faults.add(`files: ${name} is not listed, so it cannot be checked`);
    }
    for (const [name, entry] of Object.entries(manifest.adapters)) {
      if (!ADAPTER.test(name) || entry.file !== `adapters/${name}.safetensors` || !(entry.file in manifest.files)) {
        faults.add(`adapters.${name}: its file must be adapters/${name}.safetensors, and listed`);
      }
    }
    faults.throwIfAny("Export it for browser-wasm.");
  }

  has(file) {
    return file in this.manifest.files;
  }

  /** The bytes of a file, checked; `report(received, total)` is called as they come. */
  async read(file, report = () => {}) {
    const entry = this.manifest.files[file];
    if (!entry) throw new EdgeftError(`${file}: is not one of this bundle's files.`);
    const bytes = await receive(await get(new URL(file, this.address)), entry.size, file, report);
    const digest = await sha256(bytes);
    if (digest !== entry.sha256) {
      const faults = new Faults(`${file}: is not as it was exported`);
      faults.add("sha256", entry.sha256.slice(0, 12), digest.slice(0, 12));
      faults.throwIfAny("Copy the folder again, or export it again; then reload the page.");
    }
    return bytes;
  }

  async text(file) {
    return new TextDecoder().decode(await this.read(file));
  }

  async json(file) {
    return JSON.parse(await this.text(file));
  }
}

async function get(url, cache = "default") {
  let answer;
  try {
    answer = await fetch(url, { cache });
  } catch {
    throw new EdgeftError(`${name(url)}: cannot be read. Is the server that gave this page still running?`);
  }
  if (!answer.ok) throw new EdgeftError(`${name(url)}: the server answers ${answer.status}. Is the folder whole?`);
  return answer;
}

function name(url) {
  return url.pathname.split("/").pop();
}

/** A body into memory of the declared size; one that is longer or shorter is refused. */
async function receive(answer, size, file, report) {
  const bytes = new Uint8Array(size);
  const reader = answer.body.getReader();
  let received = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (received + value.length <= size) bytes.set(value, received);
    received += value.length;
    if (received > size) break;
    report(received, size);
  }
  if (received !== size) {
    await reader.cancel();
    const faults = new Faults(`${file}: is not as it was exported`);
    faults.add("size", `${size} bytes`, received > size ? "more" : `${received} bytes`);
    faults.throwIfAny("Copy the folder again, or export it again; then reload the page.");
  }
  return bytes;
}

/** SHA-256 in hex. */
async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
