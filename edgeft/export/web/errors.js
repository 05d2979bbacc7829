/** An error whose message is for the person at the page as it stands. */
export class EdgeftError extends Error {
  constructor(message) {
    super(message);
    this.name = "EdgeftError";
  }
}

/** Every fault of one subject, collected before anything is thrown. */
export class Faults {
  constructor(subject) {
    this.subject = subject;
    this.lines = [];
  }

  add(what, declared, found) {
    this.lines.push(declared === undefined ? what : `${what}  declared ${show(declared)}  found ${show(found)}`);
  }

  throwIfAny(advice = "") {
    if (!this.lines.length) return;
    const shown = this.lines.slice(0, 12).map((line) => `  ${line}`);
    if (this.lines.length > shown.length) shown.push(`  ... and ${this.lines.length - shown.length} more`);
    throw new EdgeftError([this.subject, ...shown, ...(advice ? [advice] : [])].join("\n"));
  }
}

function show(value) {
  return Array.isArray(value) ? `[${value.join(", ")}]` : String(value);
}
