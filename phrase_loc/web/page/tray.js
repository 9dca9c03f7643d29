// The photographs that are at hand, as small pictures; one of them is shown.

import { picture } from "./painting.js";
import { state } from "./state.js";

const SIDE = 160; // pixels of a small picture's longer side

/** A small canvas of a photograph, grey where the browser cannot decode it. */
export async function thumbnail(photo) {
  const bitmap = await picture(photo, SIDE), made = document.createElement("canvas"), [width, height] = photo.size;
  const scale = SIDE / Math.max(width, height);
  Object.assign(made, { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  if (bitmap) made.getContext("2d").drawImage(bitmap, 0, 0, made.width, made.height);
  bitmap?.close();
  return made;
}

/** Show the photographs of `state` in a list; nothing where there is but one.
 *
 * @param on {select(photo), drop(photo)}
 */
export function tray(list, on) {
  list.hidden = state.photos.length < 2;
  const held = list.contains(document.activeElement) && [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...(list.hidden ? [] : state.photos.map((photo) => item(photo, on))));
  if (held !== false) list.querySelectorAll("button")[Math.min(held, 2 * state.photos.length - 1)]?.focus();
}

function item(photo, on) {
  const made = document.createElement("li"), shown = photo === state.photo;
  const show = Object.assign(document.createElement("button"), { type: "button", title: photo.name, onclick: () => on.select(photo) });
  show.setAttribute("aria-label", `Show ${photo.name}`);
  if (shown) show.setAttribute("aria-current", "true");
  show.append(photo.thumb);
  const away = Object.assign(document.createElement("button"), { type: "button", className: "small", textContent: "✕" });
  away.setAttribute("aria-label", `Remove ${photo.name}`);
  away.onclick = () => on.drop(photo);
  made.onkeydown = (event) => { if (event.key === "Delete") on.drop(photo); };
  made.append(show, away);
  return made;
}
