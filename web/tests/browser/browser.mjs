// The page in a real browser against a real server: Chromium, driven by Playwright.
//
//     node web/tests/browser/browser.mjs DIST SERVER HALF MODEL SHOTS [CLAIM]
//
// Each claim starts from a browser that has never seen the page. SHOTS is the folder for screenshots.

import { spawn, execFileSync } from "node:child_process";
import { mkdtempSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import assert from "node:assert/strict";
import { checkerboard, picture, ship } from "./picture.mjs";

const [dist, program, half, model, shots, only] = process.argv.slice(2);
const { chromium } = createRequire(`${process.cwd()}/`)(
  process.env.PLAYWRIGHT ?? "playwright-core",
);
const work = mkdtempSync(join(tmpdir(), "page-"));
mkdirSync(shots, { recursive: true });
writeFileSync(join(work, "ship.bmp"), picture(640, 480, ship));
writeFileSync(join(work, "board.bmp"), picture(32, 32, checkerboard(1)));

// ---- the server ----

class Server {
  /** A server with a new state. */
  static async start(models, state = mkdtempSync(join(work, "server-"))) {
    const server = new Server();
    Object.assign(server, { models, state, web: "127.0.0.1:0", http: "127.0.0.1:0" });
    await server.up();
    return server;
  }

  /** Starts, at the same addresses as before if it ran before. */
  async up() {
    const flags = ["--unbound", "--listen", "127.0.0.1:0", "--state", this.state, "--web", this.web];
    flags.push("--web-http", this.http, "--web-files", dist, "--model", this.models);
    this.process = spawn(program, flags, { stdio: ["ignore", "pipe", "pipe"] });
    let said = "";
    this.log = "";
    const pages = new Promise((resolve, reject) => {
      const hear = (chunk) => {
        said += chunk;
        this.log += chunk;
        const https = said.match(/page https:\/\/(\S+)\//);
        const http = said.match(/page http:\/\/(\S+)\//);
        if (https && http) resolve([https[1], http[1]]);
      };
      this.process.stdout.on("data", hear);
      this.process.stderr.on("data", hear);
      this.process.on("exit", (code) => reject(new Error(`the server ended with ${code}:\n${said}`)));
    });
    pages.catch(() => {});
    [this.web, this.http] = await pages;
    this.page = `http://${this.http}/`;
  }

  async down(signal = "SIGTERM") {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const gone = new Promise((resolve) => this.process.once("exit", resolve));
    this.process.kill(signal);
    await gone;
  }
}

// ---- the browser ----

async function browse(run, options = {}) {
  const profile = mkdtempSync(join(work, "profile-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
    viewport: { width: 1000, height: 900 },
    deviceScaleFactor: 1,
    ...options,
  });
  const complaints = [];
  context.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });
  context.on("weberror", (error) => complaints.push(String(error.error())));
  try {
    await run(context, complaints);
  } catch (error) {
    const pages = context.pages();
    for (const [index, page] of pages.entries()) {
      await page.screenshot({ path: join(shots, `failed-${index}.png`), fullPage: true }).catch(() => {});
      console.error(await page.locator("body").innerText().catch(() => ""));
    }
    console.error(complaints.join("\n"));
    throw error;
  } finally {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  }
}

async function visit(context, server) {
  const page = await context.newPage();
  await page.goto(server.page);
  await connected(page);
  return page;
}

const connected = (page) => page.locator('#line[data-state="open"]').waitFor({ timeout: 30000 });
const idle = (page) => page.locator('body[data-busy=""]').waitFor({ timeout: 300000 });

async function prepare(page, count = 1) {
  await idle(page);
  await page.locator("#count").selectOption(String(count));
  await page.locator("#prepare").click();
  await idle(page);
}

async function choose(page, file = "ship.bmp") {
  await page.locator("#file").setInputFiles(join(work, file));
  await idle(page);
}

async function askPrivately(page) {
  await page.locator("#ask").click();
  await idle(page);
  return page.locator("#answer-label").innerText();
}

/** Waits until the page no longer trusts that the server is there because it was a moment ago. */
const longer = (page) => page.waitForTimeout(1200);
const prepared = (page) => page.locator("#prepared").innerText();
const trouble = (page) => page.locator("#trouble").innerText();
const shoot = (page, name) => page.screenshot({ path: join(shots, `${name}.png`), fullPage: true });

/** Asks with the client's shares in the result, and the pixels that the network read. */
async function askForShares(page) {
  const answer = await page.evaluate(async () => {
    const { ask } = await import("/app.js");
    return ask("ask", { trace: true });
  });
  const pixels = await page.evaluate(() => {
    const canvas = document.getElementById("pixels");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const plane = canvas.width * canvas.height;
    return [0, 1, 2].flatMap((c) => Array.from({ length: plane }, (_, i) => data[4 * i + c]));
  });
  return { answer, pixels };
}

function exact(models, { answer, pixels }) {
  writeFileSync(join(work, "pixels"), Buffer.from(pixels).toString("hex"));
  writeFileSync(join(work, "shares"), answer.trace);
  const files = [join(work, "pixels"), join(work, "shares")];
  return execFileSync(half, ["exact", models, ...files], { encoding: "utf8" }).trim();
}

// ---- the claims ----

const claims = {
  async "a picture is answered privately, as by the exact interpreter"(server) {
    await browse(async (context, complaints) => {
      const elsewhere = [];
      context.on("request", (request) => {
        if (!request.url().startsWith(server.page)) elsewhere.push(request.url());
      });
      const page = await visit(context, server);
      await idle(page);
      await shoot(page, "1-start");
      await page.locator("#count").selectOption("4");
      await page.locator("#prepare").click();
      await page.locator("#progress:not([hidden])").waitFor();
      await page.waitForTimeout(700);
      await shoot(page, "2-preparing");
      await idle(page);
      assert.equal(await prepared(page), "4 answers are prepared.");
      await choose(page);
      await shoot(page, "3-picture");
      const label = await askPrivately(page);
      assert.notEqual(label, "");
      await shoot(page, "4-answer");
      // For the documents.
      await page.screenshot({
        path: join(shots, "page.png"),
        fullPage: true,
        clip: { x: 110, y: 0, width: 780, height: 1290 },
      });
      const seen = page.locator('section[aria-labelledby="seen-heading"]');
      await seen.screenshot({ path: join(shots, "seen.png") });
      const bytes = await page.locator("#bytes-answer").innerText();
      const keys = await page.locator("#bytes-keys").innerText();
      const bundles = await page.locator("#bytes-bundles").innerText();
      console.log(`    ${label}; ${[keys, bundles, bytes].map((t) => t.replace(/\s+/g, " ")).join("; ")}`);

      const asked = await askForShares(page);
      assert.equal(exact(model, asked), `label ${asked.answer.label}`);
      const again = await askForShares(page);
      assert.notEqual(again.answer.sent, asked.answer.sent, "the mask is new each time");
      assert.equal(await prepared(page), "1 answer is prepared.");
      assert.deepEqual(elsewhere, [], "nothing is fetched from elsewhere");
      assert.deepEqual(complaints, []);
    });
  },

  async "keys, a bundle alone and an answer are timed"(server) {
    await browse(async (context) => {
      const page = await visit(context, server);
      await choose(page);
      const times = { keys: [], bundles: [], answer: [] };
      for (let round = 0; round < 3; round += 1) {
        await prepare(page);
        const { answer } = await askForShares(page);
        times.answer.push(answer.milliseconds);
        const computing = (row) => page.locator(`#bytes-${row}`).getAttribute("data-computing");
        for (const row of ["keys", "bundles"]) times[row].push(Number(await computing(row)));
      }
      const text = (list) => list.map((ms) => `${ms.toFixed(0)} ms`).join(", ");
      console.log(`    keys ${text(times.keys.slice(0, 1))} and bundles ${text(times.bundles)} of computing`);
      console.log(`    answers ${text(times.answer)} in all`);
    });
  },

  async "preparations outlive the page and the browser's next start"(server) {
    await browse(async (context) => {
      const page = await visit(context, server);
      await prepare(page);
      const client = await page.locator("#client").textContent();
      await page.reload();
      await connected(page);
      await idle(page);
      assert.equal(await prepared(page), "1 answer is prepared.");
      assert.equal(await page.locator("#client").textContent(), client);
      await choose(page);
      assert.notEqual(await askPrivately(page), "");
      await page.reload();
      await connected(page);
      await idle(page);
      assert.equal(await prepared(page), "No answers are prepared.");
    });
  },

  async "two tabs at once get an answer each, and use two preparations"(server) {
    await browse(async (context, complaints) => {
      const [one, two] = [await visit(context, server), await visit(context, server)];
      await prepare(one, 4);
      await Promise.all([choose(one), choose(two)]);
      await two.locator("#ask:enabled").waitFor();
      const labels = await Promise.all([askPrivately(one), askPrivately(two)]);
      assert.ok(labels.every((label) => label !== ""), labels.join());
      await one.bringToFront();
      assert.equal(await prepared(one), "2 answers are prepared.");
      assert.equal(await prepared(two), "2 answers are prepared.");
      assert.deepEqual(complaints, []);
    });
  },

  async "a preparation is used once, even if the browser's store is an old copy"(server) {
    await browse(async (context) => {
      const page = await visit(context, server);
      await prepare(page);
      await choose(page);
      const copy = () => page.evaluate(async () => {
        const { Store } = await import("/store.js");
        const store = await Store.open();
        const service = document.getElementById("service").textContent.replaceAll(" ", "");
        const [bundle] = await store.ready(service);
        globalThis.copied = { bundle, content: await store.content(bundle.id) };
        return bundle.id;
      });
      const id = await copy();
      assert.notEqual(await askPrivately(page), "");

      // In the store: the mark stays, and neither use nor the same name again passes it.
      const refused = await page.evaluate(async (id) => {
        const { Store } = await import("/store.js");
        const store = await Store.open();
        const spent = await store.spend(id).then(() => "used", (error) => error.name);
        const { bundle, content } = globalThis.copied;
        const kept = await store.keep(bundle, content).then(() => "kept", (error) => error.name);
        return [spent, kept, await store.content(id)];
      }, id);
      assert.deepEqual(refused, ["Spent", "ConstraintError", undefined]);

      // At the server: a copy from before is refused.
      const file = [...readFileSync(join(work, "ship.bmp"))];
      const code = await page.evaluate(async (file) => {
        const { Store } = await import("/store.js");
        const { Module } = await import("/module.js");
        const { Connection, place } = await import("/connection.js");
        const store = await Store.open();
        const compiled = await WebAssembly.compile(await (await fetch("/client.wasm")).arrayBuffer());
        const module = await Module.of(compiled);
        const connection = await Connection.open(module, await store.identity(), await place(), () => {});
        const { bundle, content } = globalThis.copied;
        module.pass("{}");
        await connection.run("hello", []);
        module.pass(bundle.model, await store.model(bundle.model));
        module.call("use_artifact");
        module.pass("a.bmp", Uint8Array.from(file));
        module.call("read_picture", 5);
        module.pass(bundle.id, content);
        module.call("load_bundle");
        return connection.run("infer", [0]).then(() => "answered", (error) => {
          module.call("refusal", error.code);
          return module.json().name;
        });
      }, file);
      assert.ok(["SpentBundle", "UnknownBundle"].includes(code), code);
    });
  },

  async "an offline device is told so, and goes on when it is back"(server) {
    await browse(async (context) => {
      const page = await visit(context, server);
      await prepare(page);
      await choose(page);
      await context.setOffline(true);
      await server.down("SIGKILL");
      await longer(page);
      await page.locator("#ask").click();
      await page.locator("#trouble:not([hidden])").waitFor();
      assert.match(await trouble(page), /offline/);
      await shoot(page, "5-offline");
      await server.up();
      await context.setOffline(false);
      await idle(page);
      assert.notEqual(await page.locator("#answer-label").innerText(), "");
      assert.equal(await page.locator("#trouble").isVisible(), false);
    });
  },

  async "a server that restarts is found again, with new certificates and the same bundles"(server) {
    await browse(async (context) => {
      const page = await visit(context, server);
      await prepare(page, 4);
      await choose(page);
      await server.down();
      await longer(page);
      await page.locator("#ask").click();
      await page.locator('#line[data-state="waiting"]').waitFor();
      await server.up();
      await idle(page);
      assert.notEqual(await page.locator("#answer-label").innerText(), "");
      assert.equal(await prepared(page), "3 answers are prepared.");
    });
  },

  async "another certificate than the page names is not connected to"(server) {
    await browse(async (context) => {
      await context.route("**/server.json", async (route) => {
        const response = await route.fetch();
        const note = await response.json();
        note.certificates = note.certificates.map(() => "00".repeat(32));
        await route.fulfill({ response, json: note });
      });
      const page = await context.newPage();
      await page.goto(server.page);
      await page.locator('#line[data-state="waiting"]').waitFor();
      assert.match(await trouble(page), /shows another certificate/);
      await shoot(page, "6-certificate");
      assert.equal(await page.locator("#prepare").isDisabled(), true);
    });
  },

  async "a model that changes asks for new preparations, and old ones are not used"(server) {
    const other = join(work, "logits");
    execFileSync(half, ["logits", model, other]);
    await browse(async (context) => {
      const page = await visit(context, server);
      await prepare(page);
      await choose(page);
      await server.down();
      server.models = other;
      await server.up();
      await page.locator("#ask").click();
      await idle(page);
      assert.match(await trouble(page), /Nothing is prepared for the model that the server has now/);
      await shoot(page, "7-model");
      await prepare(page);
      const asked = await askForShares(page);
      assert.equal(exact(other, asked), `logits [${asked.answer.exact.join(", ")}]`);
      await prepare(page);
      await askPrivately(page);
      await shoot(page, "8-logits");
      await server.down();
      server.models = model;
      await server.up();
      await page.reload();
      await connected(page);
      await idle(page);
      assert.equal(await prepared(page), "1 answer is prepared.");
    });
  },

  async "a picture out of the network's range gets no answer, and the page says so"(server) {
    await browse(async (context) => {
      const page = await visit(context, server);
      await prepare(page);
      await choose(page, "board.bmp");
      assert.equal(await askPrivately(page), "No answer");
      await shoot(page, "9-out-of-range");
    });
  },

  async "a file that is no picture is refused with what to do"(server) {
    await browse(async (context) => {
      const page = await visit(context, server);
      writeFileSync(join(work, "letter.png"), "Dear all,");
      await choose(page, "letter.png");
      assert.match(await trouble(page), /letter\.png/);
      assert.equal(await page.locator("#ask").isDisabled(), true);
    });
  },

  async "erasing leaves nothing, and another name"(server) {
    await browse(async (context) => {
      const page = await visit(context, server);
      await prepare(page);
      const client = await page.locator("#client").textContent();
      await page.locator("summary").click();
      await shoot(page, "10-details");
      await page.locator("#erase").click();
      await page.locator("#client").filter({ hasNotText: client }).waitFor({ state: "attached" });
      await connected(page);
      await idle(page);
      assert.equal(await prepared(page), "No answers are prepared.");
      assert.notEqual(await page.locator("#client").textContent(), client);
    });
  },

  async "the page is used by keyboard alone, in the dark and on a phone"(server) {
    await browse(async (context) => {
      const page = await visit(context, server);
      await idle(page);
      await page.locator("#count").focus();
      await page.keyboard.press("Tab");
      assert.equal(await page.evaluate(() => document.activeElement.id), "prepare");
      await page.keyboard.press("Enter");
      await idle(page);
      await choose(page);
      await page.locator("#ask").focus();
      await page.keyboard.press("Enter");
      await idle(page);
      assert.notEqual(await page.locator("#answer-label").innerText(), "");
      const { scrolls, unnamed } = await page.evaluate(() => ({
        scrolls: document.documentElement.scrollWidth > innerWidth,
        unnamed: [...document.querySelectorAll("button, input, select, canvas, progress")]
          .filter((e) => !(e.textContent.trim() || e.labels?.length || e.getAttribute("aria-label")))
          .map((e) => e.id),
      }));
      assert.equal(scrolls, false, "the page is wider than the screen");
      assert.deepEqual(unnamed, []);
      await shoot(page, "11-phone-dark");
    }, { colorScheme: "dark", viewport: { width: 375, height: 740 }, hasTouch: true, isMobile: true });
  },
};

let failed = 0;
for (const [claim, check] of Object.entries(claims)) {
  if (only && !claim.includes(only)) continue;
  const started = performance.now();
  const server = await Server.start(model);
  try {
    await check(server);
    console.log(`ok    ${claim} (${((performance.now() - started) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${claim}\n${error.stack}\n${server.log.slice(-3000)}`);
  } finally {
    await server.down("SIGKILL").catch(() => {});
  }
}
rmSync(work, { recursive: true, force: true });
process.exit(failed === 0 ? 0 : 1);
