/** How a prompt becomes the text that the model sees: recorded by training, applied here. */
import { EdgeftError } from "./errors.js";

const PLACE = "{prompt}";

/** raw: as it is; pair: the task's template, filled in, and the separator; chat: the chat template. */
export class PromptFormat {
  constructor({ kind = "raw", separator = "", templates = {} } = {}) {
    if (!["raw", "pair", "chat"].includes(kind) || typeof separator !== "string") {
      throw new EdgeftError(`prompt format '${kind}' is not one of raw, pair, chat`);
    }
    for (const [task, text] of Object.entries(templates)) {
      if (typeof text !== "string" || text.split(PLACE).length !== 2) {
        throw new EdgeftError(`prompt template of task '${task}' must hold ${PLACE} exactly once`);
      }
    }
    Object.assign(this, { kind, separator, templates });
  }

  /** From an adapter file's header, which holds text alone. */
  static fromMetadata(metadata) {
    let templates;
    try {
      templates = JSON.parse(metadata.templates ?? "{}");
    } catch {
      throw new EdgeftError("prompt templates are not JSON");
    }
    return new PromptFormat({ kind: metadata.prompt, separator: metadata.separator, templates });
  }

  get key() {
    return JSON.stringify([this.kind, this.separator, Object.entries(this.templates)]);
  }

  get tasks() {
    return new Set(Object.values(this.templates)).size > 1 ? Object.keys(this.templates) : [];
  }

  /** The text to feed; `render` is the chat template's, or null. */
  apply(prompt, render, task = null) {
    if (this.kind === "chat") {
      if (!render) throw new EdgeftError("This adapter was trained on chats, and there is no chat template.");
      return render([{ role: "user", content: prompt }]);
    }
    const template = this.template(task);
    return (template ? template.replace(PLACE, () => prompt) : prompt) + this.separator;
  }

  template(task) {
    if (task !== null && task in this.templates) return this.templates[task];
    if (this.tasks.length) {
      const known = this.tasks.join(", ");
      throw new EdgeftError(`Each task was trained with its own prompt template: ${known}. Choose one.`);
    }
    return Object.values(this.templates)[0] ?? "";
  }
}
