// A WebTransport session with the server, and operations on it: one bidirectional stream each, on
// which the module and the server talk.

import { COMPUTING, DONE, EVENT, NEEDS_BYTES } from "./module.js";

/** The server cannot be reached, or the session broke. */
export class Lost extends Error {
  constructor(what) {
    super(what);
    this.name = "Lost";
  }
}

/** The server refused, with this code. */
export class Refused extends Error {
  constructor(code) {
    super(`refused with code ${code}`);
    this.name = "Refused";
    this.code = code;
  }
}

/** The server is not the one that this page belongs to. */
export class Impostor extends Error {
  constructor(what) {
    super(what);
    this.name = "Impostor";
  }
}

/** An error of whoever handles an operation's events. */
class OfEvent extends Error {
  constructor(cause) {
    super("an event was not handled", { cause });
    this.name = "OfEvent";
  }
}

/** Longest wait for a session, and for the next bytes in the middle of an operation. */
const CONNECT_SECONDS = 10;
const SILENCE_SECONDS = 300;
/** Longest wait for an answer that takes no computing. */
export const REPLY_SECONDS = 5;

function bytesOf(digits) {
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

export function digitsOf(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function within(seconds, promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Lost(what)), seconds * 1000);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Where the session is, and by what its server is known: asked anew each time, as certificates change. */
export async function place() {
  let response;
  try {
    response = await fetch("server.json", { cache: "no-store" });
  } catch {
    throw new Lost("the server does not answer");
  }
  if (!response.ok) throw new Lost(`the server answers with status ${response.status}`);
  return response.json();
}

export class Connection {
  #transport;
  #module;
  #traffic;
  #ended = null;
  #heard = performance.now();
  /** Milliseconds that the module computed in the last operation. */
  computed = 0;

  /** Bytes of this session, up and down, as `onTraffic` is told. */
  static async open(module, identity, where, onTraffic) {
    const connection = new Connection();
    connection.#module = module;
    connection.#traffic = onTraffic;
    const url = new URL(where.session, location.href);
    const certificates = where.certificates ?? [];
    const options = { congestionControl: "throughput" };
    if (certificates.length > 0) {
      options.serverCertificateHashes = certificates.map((digits) => ({
        algorithm: "sha-256",
        value: bytesOf(digits),
      }));
    }
    const transport = new WebTransport(url, options);
    connection.#transport = transport;
    transport.closed.then(
      ({ closeCode }) => {
        connection.#ended = closeCode ? new Refused(closeCode) : new Lost("the server hung up");
      },
      () => {
        connection.#ended = new Lost("the connection broke");
      },
    );
    // The browser does not tell a wrong certificate from no answer.
    const certificate = ", or shows another certificate than it should";
    const late = `the server does not answer${certificates.length > 0 ? certificate : ""}`;
    try {
      await within(CONNECT_SECONDS, transport.ready, late);
    } catch {
      transport.close();
      throw new Lost(late);
    }
    module.disconnect();
    try {
      await connection.#introduce(identity, url.host, where.service);
    } catch (error) {
      connection.close();
      throw error;
    }
    return connection;
  }

  async #introduce(identity, authority, service) {
    const algorithm = { name: "ECDSA", hash: "SHA-256" };
    this.#module.pass(identity.key, authority);
    const names = await this.run("introduce", [identity.key.length], async (toSign) => {
      return new Uint8Array(await crypto.subtle.sign(algorithm, identity.private, toSign));
    });
    const [served, client] = JSON.parse(new TextDecoder().decode(names));
    const prefix = new TextEncoder().encode("pianissimo web key\0");
    const named = new Uint8Array([...prefix, ...identity.key]);
    const own = digitsOf(new Uint8Array(await crypto.subtle.digest("SHA-256", named)));
    if (client !== own) throw new Impostor("the server calls this browser by another's name");
    if (served !== service) throw new Impostor("the server has another name than its page says");
    this.service = served;
    this.client = client;
  }

  /** Whether the session stands, as far as is known here. */
  get open() {
    return this.#ended === null;
  }

  close() {
    this.#ended ??= new Lost("closed");
    this.#transport.close();
  }

  /** Milliseconds since the server was heard last. */
  get silent() {
    return performance.now() - this.#heard;
  }

  /** Has the bytes counted by another function from now on. */
  onTraffic(count) {
    this.#traffic = count;
  }

  /**
   * Runs one operation of the module on a stream of its own; arguments were passed before. Returns
   * its result. `onEvent` gets what the operation tells, and returns the answer; `patience` is the
   * longest silence of the server, in seconds.
   */
  async run(name, numbers, onEvent = async () => new Uint8Array(), patience = SILENCE_SECONDS) {
    if (this.#ended) throw this.#ended;
    this.#module.call(name, ...numbers);
    this.computed = 0;
    let reader;
    try {
      const stream = await this.#transport.createBidirectionalStream();
      reader = stream.readable.getReader();
      return await this.#carry(stream.writable.getWriter(), reader, onEvent, patience);
    } catch (error) {
      this.#module.abandon();
      throw await this.#explained(error, reader);
    } finally {
      reader?.cancel().catch(() => {});
    }
  }

  async #carry(writer, reader, onEvent, patience) {
    const module = this.#module;
    const failed = new Promise((_, reject) => writer.closed.catch(reject));
    failed.catch(() => {});
    try {
      for (;;) {
        let state;
        const before = performance.now();
        try {
          state = module.call("poll");
        } finally {
          this.computed += performance.now() - before;
          const outgoing = module.outgoing();
          if (outgoing.length > 0) {
            this.#traffic(outgoing.length, 0);
            // Its failure shows in `closed`.
            writer.write(outgoing).catch(() => {});
          }
        }
        if (state === COMPUTING) {
          const taken = Promise.race([writer.ready, failed]);
          await within(patience, taken, "the server takes nothing");
        } else if (state === NEEDS_BYTES) {
          const read = reader.read();
          const { value, done } = await within(patience, read, "the server went silent");
          this.#heard = performance.now();
          if (done) {
            module.call("ended");
          } else {
            this.#traffic(0, value.length);
            module.pass(value);
            module.call("arrived");
          }
        } else if (state === EVENT) {
          const event = module.bytes();
          const answer = await onEvent(event).catch((cause) => {
            throw new OfEvent(cause);
          });
          event.fill(0);
          module.pass(answer);
          module.call("reply");
        } else if (state === DONE) {
          const result = module.bytes();
          module.forget();
          writer.close().catch(() => {});
          return result;
        }
      }
    } catch (error) {
      writer.abort().catch(() => {});
      throw error;
    }
  }

  /**
   * The error behind an error of a stream. A server that refuses stops what comes and resets what
   * goes, and only the second has its reason; a session's own end says more than that of a stream.
   */
  async #explained(error, reader) {
    if (error instanceof OfEvent) return error.cause;
    if (error instanceof DOMException) {
      const moment = new Promise((resolve) => setTimeout(resolve, 500));
      const reset = await Promise.race([reader?.closed.catch((reason) => reason), moment]);
      for (const reason of [error, reset]) {
        if (reason?.streamErrorCode) return new Refused(reason.streamErrorCode);
      }
      return this.#ended ?? new Lost("the connection broke");
    }
    if (error?.kind === "lost") return this.#ended ?? new Lost(error.message);
    if (error instanceof Lost) this.close();
    return error;
  }
}
