// The other way round: which words look at a place of the photograph?

import * as server from "./server.js";
import { work } from "./messages.js";
import { layers, state } from "./state.js";

const $ = (id) => document.getElementById(id);

/** Let the canvas be clicked, or steered with the arrow keys.
 *
 * @param on {draw, asking(question), add(phrase)} of the page
 */
export function watch(canvas, on) {
  canvas.onclick = (event) => {
    const frame = canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
    askHere(Math.min(Math.max(x, 0), 1) * state.photo.size[0], Math.min(Math.max(y, 0), 1) * state.photo.size[1], on);
  };
  canvas.onpointermove = (event) => { if (event.pointerType === "mouse") choose(boxUnder(canvas, event), on); };
  canvas.onpointerleave = () => choose(null, on);
  canvas.onkeydown = (event) => {
    if (event.key === "Enter" && state.cross) askHere(state.cross.x, state.cross.y, on);
    if (event.key === "Escape") { state.cross = null; $("here").hidden = true; }
    if (steer(event)) event.preventDefault();
    on.draw();
  };
}

/** The smallest of the boxes that are drawn at a place: {phrase, rank} or null. */
function boxUnder(canvas, event) {
  const frame = canvas.getBoundingClientRect(), [width, height] = state.photo.size;
  const x = (event.clientX - frame.left) / frame.width * width, y = (event.clientY - frame.top) / frame.height * height;
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  return layers()[0].flatMap(({ phrase, boxes = [] }) => boxes.map(({ xyxy }, rank) => ({ phrase, rank, xyxy })))
    .filter(({ phrase, xyxy: [x1, y1, x2, y2] }) => phrase && x1 <= x && x <= x2 && y1 <= y && y <= y2)
    .sort((a, b) => area(a.xyxy) - area(b.xyxy))[0] ?? null;
}

function choose(box, on) {
  if (box?.phrase === state.box?.phrase && box?.rank === state.box?.rank) return;
  state.box = box;
  on.draw();
}

function steer(event) {
  const [width, height] = state.photo.size;
  const step = Math.max(width, height) / (event.shiftKey ? 100 : 25);
  const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  if (!move) return false;
  const from = state.cross ?? { x: width / 2, y: height / 2 };
  const clip = (v, most) => Math.min(Math.max(v, 0), most - 1);
  state.cross = { x: clip(from.x + move[0], width), y: clip(from.y + move[1], height) };
  return true;
}

async function askHere(x, y, on) {
  const photo = state.photo;
  state.cross = { x, y };
  on.draw();
  const words = await work("Reading …", () => on.asking((key) => server.wordsAt(key, x, y)));
  if (!words || photo !== state.photo) return;
  $("here").hidden = false;
  $("here-title").textContent = "Words that look at the cross (choose one to search for it):";
  $("here-words").replaceChildren(...words.map(({ word }) => {
    const chip = Object.assign(document.createElement("button"), { type: "button", textContent: word });
    chip.onclick = () => on.add(word);
    return chip;
  }));
}
