// What the page says: that it works, why something failed, that a token is wanted.

import { setToken } from "./server.js";

const $ = (id) => document.getElementById(id);
let working = 0; // actions under way

/** Run an action that asks the server; its failure becomes a sentence, and undefined.
 *
 * @param start what to do again once a token was given
 * @param told takes the sentence, null shows it
 */
export async function work(text, action, start = () => location.reload(), told = null) {
  if (!working) say("");
  working += 1;
  $("busy").textContent = text;
  try {
    return await action();
  } catch (error) {
    if (told && error.status !== 401) told(error.message);
    else fail(error, start);
    return undefined;
  } finally {
    working -= 1;
    if (!working) $("busy").textContent = "";
  }
}

export function fail(error, start = () => location.reload()) {
  if (error.status === 401) askToken(start);
  else say(error.message);
}

/** A sentence that stays until the next question; "" takes it away. */
export function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

/** A word that passes. */
export function tell(text) {
  $("busy").textContent = text;
  setTimeout(() => { if ($("busy").textContent === text) $("busy").textContent = ""; }, 3000);
}

function askToken(start) {
  const dialog = $("token-dialog");
  if (dialog.open) return;
  dialog.showModal();
  dialog.onclose = () => { setToken($("token").value); start(); };
}
