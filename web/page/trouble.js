// Errors in sentences: what has happened, and what to do.

import { Impostor, Lost, Refused } from "./connection.js";
import { Failure } from "./module.js";
import { Spent } from "./store.js";

/** An error that is in words for the visitor already. */
export class Trouble extends Error {
  constructor(what, remedy) {
    super(what);
    this.name = "Trouble";
    this.remedy = remedy;
  }
}

const OF_KIND = {
  misbehaved: ["The server broke the protocol", "Reload the page. If that does not help, tell whoever runs the server."],
  incompatible: ["Page and server are of different releases", "Reload the page."],
  lost: ["The connection broke", "This page tries again by itself."],
  stored: ["What this browser stored is damaged", "Prepare again. What is damaged is not used."],
  model: ["The server's model cannot be used", "Tell whoever runs the server."],
  input: ["This file is no picture for the model", "Choose another file: PNG, JPEG, WebP, GIF, BMP or TIFF."],
  internal: ["Something went wrong in this page", "Reload the page."],
};

/** What to show of an error; `refusal` explains the code of a server that refused. */
export function troubleOf(error, refusal) {
  if (error instanceof Trouble) return { what: error.message, remedy: error.remedy };
  if (error instanceof Refused) {
    const { what, remedy, name, again_in: seconds } = refusal(error.code);
    return { what, remedy, name, seconds };
  }
  if (error instanceof Lost) {
    return {
      what: navigator.onLine ? `There is no connection: ${error.message}.` : "This device is offline.",
      remedy: "This page tries again by itself.",
    };
  }
  if (error instanceof Impostor) {
    return {
      what: `Someone else may be answering: ${error.message}.`,
      remedy: "Nothing was sent. Tell whoever runs the server.",
    };
  }
  if (error instanceof Spent) {
    return {
      what: "This preparation was used before, perhaps in another tab.",
      remedy: "Ask again: another one is used.",
    };
  }
  if (error instanceof Failure) {
    const [what, remedy] = OF_KIND[error.kind] ?? OF_KIND.internal;
    return { what: `${what}: ${error.message}.`, remedy };
  }
  if (error?.name === "QuotaExceededError") {
    return {
      what: "This browser has no room for another preparation.",
      remedy: "Make room on the device, or prepare fewer.",
    };
  }
  console.error(error?.name, error?.stack);
  return { what: OF_KIND.internal[0] + ".", remedy: OF_KIND.internal[1] };
}
