/** Text to tokens and back, over @huggingface/tokenizers; chat templates over @huggingface/jinja. */
import { EdgeftError } from "./errors.js";

const HELD = 8; // tokens: no character has more bytes than 4, so what is broken for longer stays broken
const BROKEN = "\ufffd";

/** The bundle's tokenizer; `library` is @huggingface/tokenizers. */
export class Text {
  constructor(library, description) {
    // the config is what transformers adds to a tokenizer; the runner in Python reads tokenizer.json alone, too
    this.tokenizer = new library.Tokenizer(description, { clean_up_tokenization_spaces: false });
  }

  /** Token ids with the tokenizer's own special tokens; a template that writes <s> itself does not get two. */
  encode(text) {
    const { ids } = this.tokenizer.encode(text);
    if (ids.length > 1 && ids[0] === ids[1]) {
      const bare = this.tokenizer.encode(text, { add_special_tokens: false }).ids;
      if (bare.length === ids.length - 1 && bare.every((id, index) => id === ids[index + 1])) return bare;
    }
    return ids;
  }

  decode(ids) {
    if (!ids.length) return "";
    return this.tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
  }
}

/** One answer's tokens to text as they come; bytes that are not yet a whole character are held back. */
export class Detokenizer {
  constructor(text) {
    this.text = text;
    this.ids = [];
    this.before = 0; // characters of the text up to what was read
    this.start = this.read = 0; // decoding starts a little before what is new: a token's text depends on the last
  }

  step(token) {
    this.ids.push(token);
    return this.fresh(this.ids.length - this.read > HELD);
  }

  flush() {
    return this.fresh(true);
  }

  fresh(whole) {
    const after = this.text.decode(this.ids.slice(this.start));
    if ((!whole && after.endsWith(BROKEN)) || after.length <= this.before) return "";
    const made = after.slice(this.before);
    this.start = this.read;
    this.read = this.ids.length;
    this.before = this.text.decode(this.ids.slice(this.start, this.read)).length;
    return made;
  }
}

/** A function (messages) -> text of a chat template. */
export function chatRenderer(jinja, template, config) {
  const compiled = new jinja.Template(template);
  const tokens = {};
  for (const name of ["bos_token", "eos_token", "unk_token", "pad_token"]) {
    tokens[name] = config[name]?.content ?? config[name] ?? "";
  }
  return (messages) => {
    try {
      return compiled.render({ messages, add_generation_prompt: true, ...tokens });
    } catch (error) {
      throw new EdgeftError(`chat template: refused these messages (${error.message})`);
    }
  };
}
