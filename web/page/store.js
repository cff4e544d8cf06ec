// What outlives the page: the browser's key, the keys shared with servers, models and preparations
// ("bundles"), all in IndexedDB. Transactions are serialised between tabs, and those that must not
// be lost are written through to the disk ("strict").

const NAME = "pianissimo";
const VERSION = 1;
const STRICT = { durability: "strict" };

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function complete(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new Error("the store gave up"));
  });
}

/** A bundle that is spent already, here or in another tab. */
export class Spent extends Error {
  constructor() {
    super("this preparation was used before");
    this.name = "Spent";
  }
}

export class Store {
  #database;

  static async open() {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      const database = request.result;
      for (const name of ["identity", "setups", "models", "contents"]) {
        database.createObjectStore(name);
      }
      database.createObjectStore("bundles", { keyPath: "id" });
    };
    const store = new Store();
    store.#database = await result(request);
    // Another tab erases everything.
    store.#database.onversionchange = () => store.#database.close();
    return store;
  }

  async #get(name, key) {
    return result(this.#database.transaction(name).objectStore(name).get(key));
  }

  async #put(name, value, key) {
    const transaction = this.#database.transaction(name, "readwrite", STRICT);
    transaction.objectStore(name).put(value, key);
    await complete(transaction);
  }

  /** The browser's key pair, made at the first call; its private half cannot be exported. */
  async identity() {
    const known = await this.#get("identity", "key");
    if (known) return known;
    const algorithm = { name: "ECDSA", namedCurve: "P-256" };
    const pair = await crypto.subtle.generateKey(algorithm, false, ["sign", "verify"]);
    const key = new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey));
    const transaction = this.#database.transaction("identity", "readwrite", STRICT);
    const identities = transaction.objectStore("identity");
    // Another tab may have been faster: one key for all of them.
    const earlier = await result(identities.get("key"));
    const identity = earlier ?? { private: pair.privateKey, key };
    if (!earlier) identities.put(identity, "key");
    await complete(transaction);
    return identity;
  }

  /** The keys shared with a service, `{ id, bytes }`. */
  setup(service) {
    return this.#get("setups", service);
  }

  putSetup(service, setup) {
    return this.#put("setups", setup, service);
  }

  /** A model's file. */
  model(digest) {
    return this.#get("models", digest);
  }

  putModel(digest, bytes) {
    return this.#put("models", bytes, digest);
  }

  /** Every bundle with a service that is ready, the oldest first. */
  async ready(service) {
    const bundles = this.#database.transaction("bundles").objectStore("bundles");
    const all = await result(bundles.getAll());
    return all
      .filter((bundle) => bundle.service === service && bundle.state === "ready")
      .sort((a, b) => a.stored - b.stored || (a.id < b.id ? -1 : 1));
  }

  /** Keeps a bundle, with the stored form in `content`. */
  async keep({ id, service, model }, content) {
    const transaction = this.#database.transaction(["bundles", "contents"], "readwrite", STRICT);
    const bundle = { id, service, model, state: "ready", stored: Date.now() };
    // Never over one of the same name: that one may be spent.
    transaction.objectStore("bundles").add(bundle);
    transaction.objectStore("contents").add(content, id);
    await complete(transaction);
  }

  /** The stored form of a bundle that is ready. */
  content(id) {
    return this.#get("contents", id);
  }

  /**
   * Marks a bundle as spent and erases its content, durably: what this returns from was written to
   * the disk. Of all tabs that try, one succeeds; the others get `Spent`.
   */
  async spend(id) {
    await this.#end(id, "spent");
  }

  /** Gives up a bundle whose other half is lost. */
  async discard(id) {
    await this.#end(id, "discarded");
  }

  async #end(id, state) {
    const transaction = this.#database.transaction(["bundles", "contents"], "readwrite", STRICT);
    const bundles = transaction.objectStore("bundles");
    const done = complete(transaction);
    // Waiting for both, so that neither rejection is unheard.
    const claim = async () => {
      const bundle = await result(bundles.get(id));
      if (bundle?.state !== "ready") {
        transaction.abort();
        throw new Spent();
      }
      bundles.put({ ...bundle, state, ended: Date.now() });
      transaction.objectStore("contents").delete(id);
    };
    const [claimed, written] = await Promise.allSettled([claim(), done]);
    if (claimed.status === "rejected") throw claimed.reason;
    if (written.status === "rejected") throw written.reason;
  }

  /** Erases everything: key, keys, models and bundles. */
  async erase() {
    this.#database.close();
    await result(indexedDB.deleteDatabase(NAME));
  }
}
