// The client of this page, in a worker so that the page never stalls: it has the module, the store
// and the session, and does what the page asks for, one thing at a time. All tabs of a browser share
// its key and its bundles, and take turns: whoever does something has the lock.

import { Connection, Impostor, Lost, REPLY_SECONDS, Refused, place } from "./connection.js";
import { Failure, Module } from "./module.js";
import { Spent, Store } from "./store.js";
import { Trouble, troubleOf } from "./trouble.js";

const LOCK = "pianissimo";
/** Seconds between tries to reach a server that does not answer. */
const BACKOFF = [1, 2, 4, 8, 15];
/** Bundles that a greeting asks about. */
const MOST_PROBES = 64;

let compiled;
let module;
let store;
let identity;
let connection = null;
/** What the server said at the greeting; null before. */
let greeting = null;
/** What is known of the model that the module has. */
let model = null;
/** The model that the visitor chose, by name. */
let wanted = null;
/** The file in use, to be read again by another model. */
let file = null;
/** Ids of the bundles that both parties hold for the model. */
let held = [];
/** The id of the bundle that the module has loaded. */
let loaded = null;

const traffic = { up: 0, down: 0 };
const phase = { up: 0, down: 0 };

function tell(what, detail = {}) {
  postMessage({ tell: what, ...detail });
}

function count(up, down) {
  for (const counter of [traffic, phase]) {
    counter.up += up;
    counter.down += down;
  }
  tell("traffic", { ...traffic });
}

async function start() {
  // A module that stopped is replaced; its code is kept.
  if (!compiled) {
    const response = await fetch("client.wasm");
    if (!response.ok) throw new Lost("the module cannot be fetched");
    compiled = await WebAssembly.compile(await response.arrayBuffer());
  }
  module = await Module.of(compiled);
  store ??= await Store.open();
  identity ??= await store.identity();
}

/** Does something while no other tab does anything. */
async function inTurn(action) {
  const waiting = setTimeout(() => tell("connection", { state: "elsewhere" }), 300);
  return navigator.locks.request(LOCK, async () => {
    clearTimeout(waiting);
    return action();
  });
}

/** Seconds after which an error may be gone by itself; undefined if it will not. */
function againIn(error, tries) {
  if (error instanceof Lost) return BACKOFF[Math.min(tries, BACKOFF.length - 1)];
  if (error instanceof Refused) return refusal(error.code).again_in ?? undefined;
  return undefined;
}

function refusal(code) {
  module.call("refusal", code);
  return module.json();
}

/** Waits some seconds, or until the browser is online again. */
function pause(seconds) {
  return new Promise((resolve) => {
    const over = () => {
      clearTimeout(timer);
      removeEventListener("online", over);
      resolve();
    };
    const timer = setTimeout(over, seconds * 1000);
    addEventListener("online", over);
  });
}

/** Does something on a greeted connection, and tries again while the server is not there or full. */
async function patiently(action) {
  for (let tries = 0; ; tries += 1) {
    try {
      await connect();
      return await action();
    } catch (error) {
      const seconds = againIn(error, tries);
      if (seconds === undefined) throw error;
      hangUp();
      tell("connection", { state: "waiting", seconds, trouble: explain(error) });
      await pause(seconds);
    }
  }
}

function hangUp() {
  connection?.close();
  connection = null;
  greeting = null;
  held = [];
}

async function connect() {
  if (connection?.open && greeting) {
    await takeStock();
    return;
  }
  hangUp();
  tell("connection", { state: "connecting" });
  const where = await place();
  connection = await Connection.open(module, identity, where, count);
  await greet();
  tell("connection", { state: "open" });
}

async function run(name, numbers = [], onEvent = undefined) {
  const bytes = await connection.run(name, numbers, onEvent);
  return bytes;
}

function parsed(bytes) {
  return JSON.parse(new TextDecoder().decode(bytes));
}

async function greet() {
  const ready = await store.ready(connection.service);
  const probes = ready.slice(0, MOST_PROBES).map((bundle) => bundle.id);
  module.pass(JSON.stringify({ model: wanted, probes }));
  const welcome = parsed(await run("hello"));
  if (welcome.service !== connection.service || welcome.client !== connection.client) {
    throw new Impostor("the server changes names in the middle of a session");
  }
  greeting = welcome;
  await useModel(welcome.model);
  await takeStock(new Map(probes.map((id, index) => [id, welcome.held[index]])));
  tell("state", state());
}

/**
 * Finds out which bundles both parties hold, and gives up those whose other halves are lost. What
 * other tabs made or used is seen here. `answers` are the server's, by id, as far as it was asked.
 */
async function takeStock(answers = new Map()) {
  for (const id of held) answers.set(id, true);
  const ready = await store.ready(connection.service);
  const ours = ready.filter((bundle) => bundle.model === greeting.model).map(({ id }) => id);
  greeting.stale = ready.length - ours.length;
  const unknown = ours.filter((id) => !answers.has(id));
  if (unknown.length > 0) {
    module.pass(JSON.stringify(unknown));
    const there = parsed(await run("probe"));
    unknown.forEach((id, index) => answers.set(id, there[index]));
  }
  held = ours.filter((id) => answers.get(id));
  const lost = ours.filter((id) => !answers.get(id));
  for (const id of lost) await store.discard(id).catch(() => {});
  if (lost.length > 0) tell("lost", { count: lost.length });
}

async function useModel(digest) {
  if (model?.digest === digest) return;
  loaded = null;
  let bytes = await store.model(digest);
  if (bytes) {
    try {
      module.pass(digest, bytes);
      module.call("use_artifact");
      model = module.json();
    } catch {
      // Damaged here: fetched again.
      bytes = null;
    }
  }
  if (!bytes) {
    bytes = await run("fetch_artifact");
    module.pass(digest, bytes);
    module.call("use_artifact");
    model = module.json();
    await store.putModel(digest, bytes);
  }
  // The picture is read anew as the other model sees it.
  if (file) await readPicture().catch(() => {
    file = null;
  });
}

/** What the page shows of all this. */
function state() {
  return {
    client: connection.client,
    service: connection.service,
    software: greeting.software,
    name: greeting.name,
    version: greeting.version,
    current: greeting.current,
    answersLeft: greeting.answers_left,
    answersLeftToday: greeting.answers_left_today,
    ready: held.length,
    stale: greeting.stale,
    model,
  };
}

async function useKeys() {
  const known = await store.setup(connection.service);
  if (known && known.id === greeting.setup) {
    module.pass(known.id, known.bytes);
    if (module.call("use_setup") === 0) return;
  }
  const started = performance.now();
  begin();
  const [up, down] = model.setup_bytes;
  const follow = setInterval(() => {
    tell("progress", { what: "keys", part: (phase.up + phase.down) / (up + down) });
  }, 100);
  try {
    const bytes = await run("exchange_keys");
    const id = digits(bytes.subarray(2, 34));
    await store.putSetup(connection.service, { id, bytes });
    greeting.setup = id;
  } finally {
    clearInterval(follow);
  }
  tellSpent("keys", performance.now() - started);
}

function digits(bytes) {
  module.pass(bytes);
  module.call("digits");
  return module.text();
}

/** Tells what the last operation took. */
function tellSpent(what, milliseconds) {
  tell("spent", { what, milliseconds, computing: connection.computed, ...phase });
}

function begin() {
  phase.up = 0;
  phase.down = 0;
}

/** Prepares `count` bundles and keeps each as soon as the server has its half. */
async function prepare({ count: asked }) {
  let left = asked;
  await patiently(async () => {
    await useKeys();
    const started = performance.now();
    begin();
    const batch = model.batches.find(([bundles]) => bundles === left);
    const [, up, down] = batch ?? [1, ...model.offline_bytes.map((bytes) => bytes * left)];
    tell("progress", { what: "bundles", part: 0, done: asked - left, of: asked });
    const report = () => {
      const part = Math.min(1, (phase.up + phase.down) / (up + down));
      tell("progress", { what: "bundles", part, done: asked - left, of: asked });
    };
    // Of all models: the server gives up the halves of others.
    const ready = await store.ready(connection.service);
    module.pass(JSON.stringify(ready.map((bundle) => bundle.id)));
    let reported = 0;
    const follow = (up, down) => {
      count(up, down);
      if (performance.now() - reported > 50) {
        reported = performance.now();
        report();
      }
    };
    connection.onTraffic(follow);
    try {
      await run("prepare", [left], async (event) => {
        const id = digits(event.subarray(0, 32));
        const bundle = { id, service: connection.service, model: greeting.model };
        const content = event.slice(32);
        await store.keep(bundle, content);
        content.fill(0);
        held.push(id);
        others.postMessage("changed");
        left -= 1;
        report();
        tell("state", state());
        return new Uint8Array();
      });
    } finally {
      connection.onTraffic(count);
    }
    tellSpent("bundles", performance.now() - started);
  });
  tell("state", state());
  await load();
  return { ready: held.length };
}

async function readPicture() {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const name = new TextEncoder().encode(file.name || "picture");
  module.pass(name, bytes);
  module.call("read_picture", name.length);
  const result = module.bytes();
  const { width, height } = model.image;
  const pixels = result.slice(0, 4 * width * height);
  const changes = new TextDecoder().decode(result.subarray(pixels.length));
  module.call("unmasked");
  const unmasked = module.bytes();
  module.forget();
  tell("picture", {
    pixels,
    width,
    height,
    changes: changes ? changes.split("\n") : [],
    unmasked,
    sent: model.sent,
  });
}

/** Takes a file as the picture to ask about. */
async function picture({ file: chosen }) {
  if (!model) await patiently(async () => {});
  if (!model.pictures) {
    throw new Trouble("This model does not read pictures.", "Choose another model.");
  }
  file = chosen;
  try {
    await readPicture();
  } catch (error) {
    file = null;
    throw error;
  }
  if (greeting) await load();
  return {};
}

/** Reads the next bundle ahead, so that an answer starts at once. */
async function load() {
  if (loaded && held.includes(loaded)) return;
  loaded = null;
  while (held.length > 0) {
    const [id] = held;
    const content = await store.content(id);
    try {
      if (!content) throw new Failure({ kind: "stored", what: "its content is gone" });
      module.pass(id, content);
      content.fill(0);
      module.call("load_bundle");
      loaded = id;
      return;
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      // Damaged, or spent by another tab.
      held.shift();
      await store.discard(id).catch(() => {});
    } finally {
      module.forget();
    }
  }
}

/** Spends one bundle on the picture. */
async function ask({ trace = false }) {
  if (!file) throw new Trouble("There is no picture yet.", "Choose one.");
  await patiently(hearServer);
  refuseWithoutAnswers();
  const started = await spend();
  tell("asked", {});
  let answer;
  try {
    answer = parsed(await run("infer", [trace ? 1 : 0]));
  } catch (error) {
    tell("state", state());
    throw error instanceof Lost
      ? new Trouble(
          "The connection broke while the answer was made. The preparation that was in use is lost.",
          "Ask again: another preparation is used.",
        )
      : error;
  } finally {
    if (greeting && greeting.answers_left !== null) {
      greeting.answers_left = Math.max(0, greeting.answers_left - 1);
    }
    if (greeting?.answers_left_today) {
      greeting.answers_left_today[0] = Math.max(0, greeting.answers_left_today[0] - 1);
    }
  }
  const milliseconds = performance.now() - started;
  tellSpent("answer", milliseconds);
  tell("state", state());
  return {
    ...answer,
    milliseconds,
    ...phase,
    classes: model.classes,
    width: model.sent.width,
    height: model.sent.height,
    channels: model.sent.channels,
  };
}

/** Makes sure that the server is there, before a bundle is spent for nothing. */
async function hearServer() {
  const recently = 1000;
  if (connection.silent < recently || held.length === 0) return;
  module.pass(JSON.stringify([held[0]]));
  const [there] = parsed(await connection.run("probe", [], undefined, REPLY_SECONDS));
  if (!there) await store.discard(held.shift()).catch(() => {});
}

/**
 * Marks the bundle that is loaded as spent: on the disk, before the first online byte. Returns the
 * time when it began to.
 */
async function spend() {
  for (;;) {
    await load();
    if (!loaded) {
      const changed = greeting.stale > 0 ? " for the model that the server has now" : "";
      throw new Trouble(`Nothing is prepared${changed}.`, "Prepare first.");
    }
    const started = performance.now();
    begin();
    const id = loaded;
    loaded = null;
    held = held.filter((other) => other !== id);
    try {
      await store.spend(id);
      others.postMessage("changed");
      return started;
    } catch (error) {
      // Another tab was faster: nothing was sent, and the next one will do.
      if (!(error instanceof Spent)) throw error;
    }
  }
}

/** A bundle would be lost on a server that gives no more answers. */
function refuseWithoutAnswers() {
  if (greeting.answers_left === 0) {
    throw new Trouble(
      "This browser has had all the answers that the server gives to one visitor.",
      "Whoever runs the server can allow more.",
    );
  }
  if (greeting.answers_left_today?.[0] === 0) {
    throw new Trouble(
      "This browser has had all the answers that the server gives to one visitor in a day.",
      "Come back tomorrow: the day ends at midnight UTC.",
    );
  }
}

/** The models that the server has for this browser. */
async function models() {
  return patiently(async () => parsed(await run("catalogue")));
}

async function choose({ name }) {
  wanted = name;
  hangUp();
  await patiently(async () => {});
  await load();
  return {};
}

async function connectOnly() {
  await patiently(async () => {});
  await load();
  return {};
}

/** Erases all that this browser has stored. */
async function erase() {
  hangUp();
  await store.erase();
  store = undefined;
  identity = undefined;
  model = null;
  loaded = null;
  file = null;
  await start();
  return {};
}

const actions = { connect: connectOnly, prepare, picture, ask, models, choose, erase };

/** The workers of other tabs: each tells when bundles were made or used. */
const others = new BroadcastChannel(LOCK);
others.onmessage = async () => {
  if (!greeting || !connection || !model) return;
  const ready = await store.ready(connection.service);
  const count = ready.filter((bundle) => bundle.model === greeting?.model).length;
  if (greeting) tell("state", { ...state(), ready: count });
};

function explain(error) {
  return troubleOf(error, refusal);
}

let queue = Promise.resolve();

onmessage = ({ data }) => {
  const { id, action, ...rest } = data;
  queue = queue.then(async () => {
    try {
      if (!module) await start();
      const result = await inTurn(() => actions[action](rest));
      postMessage({ id, result });
    } catch (error) {
      if (error instanceof Spent) loaded = null;
      const trouble = explain(error);
      if (error instanceof WebAssembly.RuntimeError) {
        // It stopped in the middle of something: only its code can be used again.
        hangUp();
        module = null;
        model = null;
        loaded = null;
      }
      postMessage({ id, trouble });
    }
  });
};
