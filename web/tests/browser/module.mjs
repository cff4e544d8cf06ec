// The module under Node, without a browser, against the server's half on a pipe: the same files as
// on the page, the same answer as the exact interpreter, and how long each part takes.
//
//     node web/tests/browser/module.mjs DIST HALF MODEL

import { spawn, execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { once } from "node:events";
import assert from "node:assert/strict";
import { picture } from "./picture.mjs";

const [dist, half, models] = process.argv.slice(2);
const { Module, COMPUTING, NEEDS_BYTES, EVENT, DONE } = await import(
  pathToFileURL(join(dist, "module.js"))
);
const compiled = await WebAssembly.compile(readFileSync(join(dist, "client.wasm")));
const module = await Module.of(compiled);
const server = spawn(half, ["serve", models], { stdio: ["pipe", "pipe", "inherit"] });
server.stdout.pause();

/** Milliseconds that the module computed. */
let computed = 0;

async function more() {
  for (;;) {
    const chunk = server.stdout.read();
    if (chunk) return chunk;
    await once(server.stdout, "readable");
  }
}

async function run(name, ...numbers) {
  const events = [];
  module.call(name, ...numbers);
  computed = 0;
  const started = performance.now();
  for (;;) {
    const before = performance.now();
    const state = module.call("poll");
    computed += performance.now() - before;
    const outgoing = module.outgoing();
    if (outgoing.length > 0) server.stdin.write(outgoing);
    if (state === NEEDS_BYTES) {
      module.pass(await more());
      module.call("arrived");
    } else if (state === EVENT) {
      events.push(module.bytes());
      module.pass(new Uint8Array());
      module.call("reply");
    } else if (state === DONE) {
      const result = module.bytes();
      const wall = performance.now() - started;
      return { result, events, computed, wall };
    } else {
      assert.equal(state, COMPUTING);
    }
  }
}

const json = ({ result }) => JSON.parse(new TextDecoder().decode(result));
const hex = (bytes) => Buffer.from(bytes).toString("hex");
const report = (what, { computed, wall }) =>
  console.log(`${what}: ${computed.toFixed(0)} ms computing, ${wall.toFixed(0)} ms in all`);

module.pass("{}");
const welcome = json(await run("hello"));
const { result: artifact } = await run("fetch_artifact");
module.pass(welcome.model, artifact);
let started = performance.now();
module.call("use_artifact");
console.log(`model verified in ${(performance.now() - started).toFixed(0)} ms`);
const about = module.json();
report("keys", await run("exchange_keys"));

for (const count of [1, 4]) {
  module.pass("[]");
  const prepared = await run("prepare", count);
  report(`${count} bundles`, prepared);
  assert.equal(prepared.events.length, count);
  const [bundle] = prepared.events;

  const name = "a.bmp";
  const file = picture(32, 32);
  module.pass(name, file);
  module.call("read_picture", name.length);
  const rgba = module.bytes().subarray(0, 4096);
  const pixels = [0, 1, 2].flatMap((c) => Array.from({ length: 1024 }, (_, i) => rgba[4 * i + c]));

  module.pass(hex(bundle.subarray(0, 32)), bundle.subarray(32));
  started = performance.now();
  module.call("load_bundle");
  console.log(`bundle of ${bundle.length} bytes loaded in ${(performance.now() - started).toFixed(0)} ms`);
  const inferred = await run("infer", 1);
  report("answer", inferred);
  const answer = json(inferred);

  const folder = mkdtempSync(join(tmpdir(), "module-"));
  writeFileSync(join(folder, "pixels"), hex(Uint8Array.from(pixels)));
  writeFileSync(join(folder, "shares"), answer.trace);
  const exact = execFileSync(half, ["exact", models, join(folder, "pixels"), join(folder, "shares")], {
    encoding: "utf8",
  }).trim();
  rmSync(folder, { recursive: true });
  const own = answer.exact ? `logits [${answer.exact.join(", ")}]` : `label ${answer.label}`;
  assert.equal(exact, own);
  console.log(`the answer, ${about.classes[answer.label]}, is the exact interpreter's`);
}
console.log(`memory of the module: ${(module.memory / 1e6).toFixed(0)} MB`);
server.stdin.end();
