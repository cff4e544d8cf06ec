// The page: what the visitor does goes to the worker, and what the worker tells is shown.

const of = (id) => document.getElementById(id);

let worker;
let calls = 0;
const waiting = new Map();

/** What is shown: bundles ready, whether there is a picture, and what is under way. */
const shown = { ready: 0, picture: false, busy: null, model: null, of: 0 };

/** Asks the worker to do something; resolves to its result, or rejects with its trouble. */
export function ask(action, detail = {}) {
  const id = (calls += 1);
  worker.postMessage({ id, action, ...detail });
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

function startWorker() {
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => {
    if (data.tell) return tellers[data.tell]?.(data);
    const call = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.trouble) call?.reject(data.trouble);
    else call?.resolve(data.result);
  };
  worker.onerror = () => showTrouble({
    what: "This page could not be loaded as a whole.",
    remedy: "Reload it.",
  });
}

// ---- in words ----

function bytes(count) {
  if (count < 1000) return `${count} B`;
  if (count < 1e6) return `${(count / 1e3).toPrecision(3)} kB`;
  return `${(count / 1e6).toPrecision(3)} MB`;
}

function time(milliseconds) {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  return `${(milliseconds / 1000).toPrecision(2)} s`;
}

function several(count, one, more) {
  return `${count === 0 ? "no" : count} ${count === 1 ? one : more}`;
}

function name(digits) {
  return digits.match(/.{4}/g).join(" ");
}

// ---- what is shown ----

function showTrouble({ what, remedy } = {}) {
  of("trouble").hidden = !what;
  of("trouble-what").textContent = what ?? "";
  of("trouble-remedy").textContent = remedy ?? "";
}

function refresh() {
  const { ready, picture, busy } = shown;
  of("prepare").disabled = busy !== null || shown.model === null;
  of("ask").disabled = busy !== null || ready === 0 || !picture;
  for (const id of ["file", "camera", "models", "erase", "count"]) of(id).disabled = busy !== null;
  of("why-not").textContent =
    busy === "ask" ? "Asking …"
    : busy !== null ? ""
    : ready === 0 && !picture ? "Prepare, and choose a picture."
    : ready === 0 ? "Prepare first."
    : !picture ? "Choose a picture."
    : `Uses one of ${several(ready, "preparation", "preparations")}.`;
  if (busy !== "prepare" && shown.model) {
    of("prepared").textContent = `${several(ready, "answer is", "answers are")} prepared.`
      .replace(/^n/, "N");
  }
  document.body.dataset.busy = busy ?? "";
}

/** Draws shades of grey, all channels beside each other as near to a square as they go. */
function mosaic(canvas, shades, { channels, height, width }) {
  const columns = Math.ceil(Math.sqrt((channels * height) / width));
  const rows = Math.ceil(channels / columns);
  canvas.width = columns * width;
  canvas.height = rows * height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  shades.forEach((shade, index) => {
    const channel = Math.floor(index / (height * width));
    const [row, column] = [Math.floor(channel / columns), channel % columns];
    const y = row * height + (Math.floor(index / width) % height);
    const x = column * width + (index % width);
    image.data.set([shade, shade, shade, 255], 4 * (y * canvas.width + x));
  });
  context.putImageData(image, 0, 0);
}

function draw(canvas, pixels, width, height) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(new Uint8ClampedArray(pixels), width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function showBytes(row, { up, down, milliseconds }) {
  const cells = of(row).querySelectorAll("td");
  cells[0].textContent = bytes(up);
  cells[1].textContent = bytes(down);
  if (milliseconds !== undefined) cells[2].textContent = time(milliseconds);
}

const LINE = {
  connecting: () => "connecting …",
  open: () => "connected",
  elsewhere: () => "waiting for another tab",
  waiting: ({ seconds }) => `no connection, next try in ${seconds} s`,
};

const OFFLINE = { what: "This device is offline.", remedy: "This page goes on when it is back." };

const tellers = {
  connection(detail) {
    of("line").dataset.state = detail.state;
    of("line-text").textContent = LINE[detail.state](detail);
    if (detail.state === "waiting") showTrouble(navigator.onLine ? detail.trouble : OFFLINE);
    if (detail.state === "open") showTrouble();
  },

  state(state) {
    shown.ready = state.ready;
    if (shown.model !== state.model.digest) showModel(state);
    of("service").textContent = name(state.service);
    of("client").textContent = name(state.client);
    const size = bytes(state.ready * state.model.bundle_bytes);
    of("stored").textContent = state.ready === 0
      ? "no preparations"
      : `${several(state.ready, "preparation", "preparations")} (${size})`;
    if (state.stale > 0) {
      of("stored").textContent += ` and ${state.stale} for another model`;
    }
    refresh();
  },

  progress({ what, part, done, of: all }) {
    of("progress").hidden = false;
    of("progress").value = part;
    of("prepared").textContent = what === "keys"
      ? "Exchanging keys, once for this server …"
      : all === 1 ? "Preparing …" : `Preparing: ${done} of ${all} are ready …`;
  },

  spent(detail) {
    showBytes(`bytes-${detail.what}`, detail);
    of(`bytes-${detail.what}`).dataset.computing = detail.computing;
  },

  traffic(all) {
    showBytes("bytes-all", all);
  },

  asked() {
    of("sent-caption").textContent = "Sending …";
  },

  lost({ count }) {
    showTrouble({
      what: `The server lost its part of ${several(count, "preparation", "preparations")}.`,
      remedy: "Prepare again.",
    });
  },

  picture({ pixels, width, height, changes, unmasked, sent }) {
    draw(of("pixels"), pixels, width, height);
    mosaic(of("unmasked"), unmasked, sent);
    clearSent();
    of("figures").hidden = false;
    of("nothing-seen").hidden = true;
    of("changes").textContent = changes.map((change) => `${change}.`).join(" ")
      .replace(/^./, (letter) => letter.toUpperCase());
  },
};

function clearSent() {
  const canvas = of("sent");
  canvas.width = canvas.height = 1;
  of("sent-caption").innerHTML = "";
  of("sent-caption").append(bold("What was sent"), ": nothing yet.");
}

function bold(text) {
  const element = document.createElement("b");
  element.textContent = text;
  return element;
}

function showModel({ model, name: label, version }) {
  const first = shown.model === null;
  shown.model = model.digest;
  const accuracy = model.accuracy
    ? `, right on ${((100 * model.accuracy[0]) / model.accuracy[1]).toPrecision(3)} % of ${model.accuracy[1]} test images`
    : "";
  const classes = model.classes.length > 0 ? `${model.classes.length} classes` : "classes by number";
  of("model-about").textContent = `version ${version}: ${classes}${accuracy}. ${model.note}`.trim();
  of("reveals").textContent = model.reveals === "label"
    ? "the name of the class" : "the network's figure for each class";
  of("stem").textContent = model.public_layers > 0
    ? "behind the network's first layers, which are public" : "";
  const counts = [1, ...model.batches.map(([bundles]) => bundles)];
  of("count").replaceChildren(...counts.map((count) => new Option(count, count)));
  of("models").replaceChildren(new Option(label, label, true, true));
  clearAnswer();
  if (!first) {
    showTrouble({
      what: "The server has another model now.",
      remedy: "Preparations belong to a model: prepare for this one.",
    });
  }
}

/** Elements of the field of shares. */
const FIELD = 2n ** 60n - 2n ** 18n + 1n;

function clearAnswer() {
  of("answer").classList.remove("unsure");
  of("answer-label").textContent = "";
  of("answer-note").textContent = "";
  of("answer-classes").hidden = true;
}

function className(classes, label) {
  return classes[label] ?? `class ${label}`;
}

function showAnswer(answer) {
  const { label, classes, logits, milliseconds, up, down } = answer;
  of("answer").classList.toggle("unsure", label === null);
  if (label === null) {
    of("answer-label").textContent = "No answer";
    of("answer-note").textContent =
      "The picture is out of the network's range: it is unlike those that the network was made " +
      "for, and an answer could be wrong. One preparation was used.";
  } else {
    of("answer-label").textContent = className(classes, label);
    of("answer-note").textContent =
      `Answered in ${time(milliseconds)}, with ${bytes(up)} sent and ${bytes(down)} received. ` +
      "The network can be mistaken.";
  }
  of("answer-classes").hidden = !logits;
  if (logits) {
    const order = logits.map((value, index) => [value, index]).sort((a, b) => b[0] - a[0]);
    const rows = order.slice(0, 5).map(([value, index]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = className(classes, index);
      row.append(head, Object.assign(document.createElement("td"), { textContent: value.toFixed(2) }));
      return row;
    });
    of("answer-classes").tBodies[0].replaceChildren(...rows);
  }
  const shades = Uint8Array.from(answer.sent.match(/../g), (pair) => parseInt(pair, 16));
  mosaic(of("sent"), shades, answer);
  of("sent-caption").replaceChildren(
    bold("What was sent"),
    ": each value less a random number. " +
      `The first is ${BigInt(answer.first[0]).toLocaleString("en")}, of ` +
      `${FIELD.toLocaleString("en")} that are equally likely.`,
  );
}

// ---- what the visitor does ----

/** Does one thing at a time, and shows its trouble. */
async function during(what, action) {
  if (shown.busy) return;
  shown.busy = what;
  showTrouble();
  refresh();
  try {
    await action();
  } catch (trouble) {
    showTrouble(trouble.what ? trouble : { what: "Something went wrong in this page.", remedy: "Reload it." });
    if (trouble instanceof Error) console.error(trouble);
  } finally {
    shown.busy = null;
    of("progress").hidden = true;
    refresh();
  }
}

async function choosePicture(file) {
  await during("picture", async () => {
    clearAnswer();
    shown.picture = false;
    await showOriginal(file);
    await ask("picture", { file });
    shown.picture = true;
  });
}

/** Shows the file as the browser sees it, if it can. */
async function showOriginal(file) {
  const canvas = of("original");
  try {
    const most = 448;
    const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
    const scale = Math.min(1, most / Math.max(bitmap.width, bitmap.height));
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    canvas.hidden = false;
  } catch {
    canvas.hidden = true;
  }
  of("drop-text").textContent = `${file.name || "Your photo"}. Another one: drop it here, or`;
}

function listen() {
  of("prepare").addEventListener("click", () =>
    during("prepare", async () => {
      of("progress").value = 0;
      of("progress").hidden = false;
      navigator.storage?.persist?.().catch(() => {});
      await ask("prepare", { count: Number(of("count").value) });
    }));
  of("ask").addEventListener("click", () =>
    during("ask", async () => {
      clearAnswer();
      showAnswer(await ask("ask"));
    }));
  for (const id of ["file", "camera"]) {
    of(id).addEventListener("change", ({ target }) => {
      const [file] = target.files;
      target.value = "";
      if (file) choosePicture(file);
    });
  }
  const drop = of("drop");
  for (const target of [window, drop]) {
    target.addEventListener("dragover", (event) => event.preventDefault());
    target.addEventListener("drop", (event) => event.preventDefault());
  }
  drop.addEventListener("dragenter", () => drop.classList.add("over"));
  drop.addEventListener("dragleave", ({ relatedTarget }) => {
    if (!drop.contains(relatedTarget)) drop.classList.remove("over");
  });
  drop.addEventListener("drop", ({ dataTransfer }) => {
    drop.classList.remove("over");
    const [file] = dataTransfer.files;
    if (file) choosePicture(file);
  });
  of("models").addEventListener("change", ({ target }) =>
    during("model", () => ask("choose", { name: target.value })));
  of("erase").addEventListener("click", () =>
    during("erase", async () => {
      await ask("erase");
      location.reload();
    }));
  document.querySelector("details").addEventListener("toggle", ({ target }) => {
    if (target.open && !shown.busy) listModels();
  });
}

async function listModels() {
  try {
    const models = await ask("models");
    const chosen = of("models").value;
    const names = [...new Set(models.map((model) => model.name))];
    of("models").replaceChildren(
      ...names.map((label) => new Option(label, label, label === chosen, label === chosen)),
    );
  } catch {
    // The one in use stays.
  }
}

function missing() {
  if (!("WebTransport" in window)) return "WebTransport";
  if (!("locks" in navigator)) return "locks between tabs";
  if (!crypto?.subtle) return "cryptography, for which the page must come over HTTPS";
  if (!("WebAssembly" in window)) return "WebAssembly";
  return null;
}

function begin() {
  of("host").textContent = location.hostname;
  clearSent();
  const lacking = missing();
  if (lacking) {
    of("prepared").textContent = "";
    showTrouble({
      what: `This browser lacks ${lacking}.`,
      remedy: "Use a current Chrome, Edge or Firefox.",
    });
    return;
  }
  startWorker();
  listen();
  during("connect", () => ask("connect"));
}

begin();
