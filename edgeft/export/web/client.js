/** The page's side of the worker: requests by number, answers as promises. */
import { EdgeftError } from "./errors.js";

export class Client {
  constructor() {
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.waiting = new Map();
    this.count = 0;
    this.worker.onmessage = ({ data }) => this.take(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.failAll(`The model's thread ended (${event.message || "it could not be started"}). Reload the page.`);
    };
  }

  /** Ask for one of the worker's actions; `on` gets what comes before the end. */
  ask(action, data = {}, on = () => {}, transfer = []) {
    const id = (this.count += 1);
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, on });
      this.worker.postMessage({ action, id, ...data }, transfer);
    });
  }

  stop() {
    this.worker.postMessage({ action: "stop" });
  }

  take(data) {
    if (data.kind === "progress") {
      for (const { on } of this.waiting.values()) on(data);
      return;
    }
    const { resolve, reject, on } = this.waiting.get(data.id);
    if (data.kind === "piece") {
      on(data.text);
      return;
    }
    this.waiting.delete(data.id);
    if (data.kind === "done") resolve(data.result);
    else reject(new EdgeftError(data.message));
  }

  failAll(message) {
    for (const { reject } of this.waiting.values()) reject(new EdgeftError(message));
    this.waiting.clear();
  }
}
