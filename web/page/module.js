// The WebAssembly module: arguments in, results out. See web/src/abi.rs.

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** A failure that the module reports: `kind` says whose fault it is, the message what is wrong. */
export class Failure extends Error {
  constructor({ kind, what }) {
    super(what);
    this.name = "Failure";
    this.kind = kind;
  }
}

/** What an operation waits for, as `poll` returns it. */
export const COMPUTING = 0;
export const NEEDS_BYTES = 2;
export const EVENT = 3;
export const DONE = 4;

function joined(parts) {
  const pieces = parts.map((part) => (typeof part === "string" ? encoder.encode(part) : part));
  const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}

export class Module {
  #exports;

  /** The module of compiled WebAssembly. */
  static async of(compiled) {
    const module = new Module();
    const bytes = (at, length) => new Uint8Array(module.#exports.memory.buffer, at, length);
    const page = {
      random(at, length) {
        // More is refused at a time.
        const most = 65536;
        for (let done = 0; done < length; done += most) {
          crypto.getRandomValues(bytes(at + done, Math.min(most, length - done)));
        }
      },
      panicked(at, length) {
        console.error(`the module stopped at ${decoder.decode(bytes(at, length).slice())}`);
      },
    };
    module.#exports = (await WebAssembly.instantiate(compiled, { page })).exports;
    module.#exports.start();
    return module;
  }

  /** Hands bytes and texts over, one behind the other, as the arguments of the next call. */
  pass(...parts) {
    const all = joined(parts);
    const at = this.#exports.reserve(all.length);
    new Uint8Array(this.#exports.memory.buffer, at, all.length).set(all);
    return all.length;
  }

  /** Calls an export with numbers; throws the failure that it reports. Returns its number. */
  call(name, ...numbers) {
    const code = this.#exports[name](...numbers);
    if (code === 1) throw new Failure(JSON.parse(this.text()));
    return code;
  }

  /** A copy of the last result. */
  bytes() {
    const { memory, result_at, result_length } = this.#exports;
    return new Uint8Array(memory.buffer, result_at(), result_length()).slice();
  }

  text() {
    return decoder.decode(this.bytes());
  }

  json() {
    return JSON.parse(this.text());
  }

  /** Takes what the operation has sent: a copy. */
  outgoing() {
    const { memory, take_outgoing, outgoing_at } = this.#exports;
    const length = take_outgoing();
    return new Uint8Array(memory.buffer, outgoing_at(), length).slice();
  }

  /** Erases arguments and result. */
  forget() {
    this.#exports.forget();
  }

  /** Gives up the operation under way. */
  abandon() {
    this.#exports.abandon();
  }

  /** Forgets the connection. */
  disconnect() {
    this.#exports.disconnect();
  }

  /** Bytes of memory that the module takes. */
  get memory() {
    return this.#exports.memory.buffer.byteLength;
  }
}
