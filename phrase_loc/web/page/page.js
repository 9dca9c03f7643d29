// The page: photographs, one of which is shown, some phrases, their answers. `state` is all there is; `show` draws it.
// The server is asked for new phrases, methods and words only; sliders re-rank and recolour what was sent.

import * as server from "./server.js";
import { COMPARED, layOut, paintCompared } from "./compare.js";
import { fail, say, tell, work } from "./messages.js";
import { watch } from "./pointing.js";
import { decodeMap } from "./ranking.js";
import { fit, paint, picture } from "./painting.js";
import { card, missing } from "./results.js";
import { address, readAddress, saveJson, saveLabels, savePicture } from "./keeping.js";
import { thumbnail, tray } from "./tray.js";
import { NAMES, answerOf, boxesOf, colourOf, defaults, keep, layers, notesOf, remember, state, under } from "./state.js";

const $ = (id) => document.getElementById(id);
const MOST = 64; // photographs, as many as the server holds
const TRY = {
  "astronaut.png": ["a smiling woman", "an orange suit"], "coffee.png": ["a red cup", "a wooden table"],
  "chelsea.png": ["the cat", "the face of a cat"],
};

// asking the server

/** Ask about a photograph; if it has left the server's memory, send it once more. */
async function asking(question, photo = state.photo) {
  try {
    return await question(photo.key);
  } catch (error) {
    if (error.status !== 404 || !photo.blob) throw error;
    await server.look(photo.blob, photo.name);
    return question(photo.key);
  }
}

/** Fetch what is not answered yet of a photograph, then show. */
async function answer(method = state.settings.method, photo = state.photo) {
  const open = state.phrases.filter((phrase) => !answerOf(phrase, method, photo));
  if (photo && open.length) await work("Looking …", async () => {
    const found = await asking((key) => server.localize(key, open, method), photo);
    found.predictions.forEach((p, i) => keep(photo, p, method, open[i], found.proposals));
  });
  show();
  await outline(photo);
}

/** Fetch the masks of what is drawn of a photograph, if they are wanted, then draw. */
async function outline(photo = state.photo) {
  const { method, masks } = state.settings;
  for (const phrase of masks && photo ? state.phrases : []) {
    const answered = answerOf(phrase, method, photo);
    if (!answered || missing(answered)) continue;
    const boxes = boxesOf(answered, photo).map((box) => box.xyxy).filter((xyxy) => !answered.masks.has(String(xyxy)));
    const ask = () => asking((key) => server.masks({ key, phrase, method, boxes }), photo);
    const found = boxes.length ? await work("Outlining …", ask) : [];
    found?.forEach((mask, i) => answered.masks.set(String(boxes[i]), mask));
  }
  draw();
}

async function wordMaps(phrase) {
  const answered = answerOf(phrase);
  if (!answered || answered.wordMaps) return;
  await work("Looking at each word …", async () => {
    const found = await asking((key) => server.localize(key, [phrase], state.settings.method, true));
    answered.wordMaps = Object.fromEntries(
      found.predictions[0].word_maps.map((w) => [w.word, { map: decodeMap(w.map), side: w.map.side }]));
  });
}

// photographs

/** Send photographs, show the first of them. */
async function takeAll(files, example = null) {
  const limit = state.model?.limits.upload_bytes, room = Math.max(MOST - state.photos.length, 0), refused = [];
  const many = files.length > 1;
  if (state.photos.length) remember();
  for (const [place, file] of files.slice(0, room).entries()) {
    if (limit && file.size > limit) {
      refused.push(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MB, more than the ${limit / 2 ** 20} MB that are accepted.`);
      continue;
    }
    const doing = many ? `Sending ${place + 1} of ${files.length} …` : "Sending the photograph …";
    const photo = await work(doing, () => send(file, example), undefined, many ? (said) => refused.push(`${file.name}: ${said}`) : null);
    if (photo && (place === 0 || !state.photo)) {
      if (example && !state.phrases.length) state.phrases = [...(TRY[example] ?? [])];
      await select(photo);
    } else if (photo) show();
  }
  if (files.length > room) refused.push(`${files.length - room} were left out: ${MOST} photographs fit in here.`);
  if (refused.length) say(refused.slice(0, 3).join(" ") + (refused.length > 3 ? ` And ${refused.length - 3} more.` : ""));
}

/** A photograph in the tray; one that is there already is not put there twice. */
async function send(blob, example) {
  const { key, size } = await server.look(blob, blob.name);
  const known = state.photos.find((photo) => photo.key === key);
  if (known) return known;
  const photo = { key, size, blob, name: blob.name, example, bitmap: null, answers: new Map() };
  photo.thumb = await thumbnail(photo);
  state.photos = [...state.photos, photo];
  return photo;
}

/** Show a photograph and what is asked; null shows the start. Only one is held decoded. */
async function select(photo) {
  if (state.photo !== photo) state.photo?.bitmap?.close();
  if (state.photo && state.photo !== photo) state.photo.bitmap = null;
  Object.assign(state, { photo, cross: null, word: null, box: null, hovered: null });
  $("here").hidden = true;
  if (photo && !photo.bitmap) {
    const bitmap = await picture(photo);
    if (state.photo !== photo) return bitmap?.close(); // another was chosen meanwhile
    if (!bitmap) setTimeout(() => say("Your browser cannot show this kind of file; boxes are drawn on grey."));
    photo.bitmap = bitmap;
  }
  show();
  if (photo && matchMedia("(min-width: 801px)").matches && !document.activeElement?.closest("#tray")) $("phrase").focus();
  await answer();
  if (state.comparing && photo) await compare();
}

function drop(photo) {
  remember();
  const place = state.photos.indexOf(photo);
  state.photos = state.photos.filter((p) => p !== photo);
  return photo === state.photo ? select(state.photos[Math.min(place, state.photos.length - 1)] ?? null) : show();
}

const named = (blob, name) => new File([blob], name, { type: blob.type });
const takeExample = (name) => work("Fetching the example …", async () => takeAll([named(await server.example(name), name)], name));

async function takeHeld(key, name) {
  try {
    await takeAll([named(await server.image(key), name || "photograph")]);
  } catch (error) {
    if (error.status === 404) say("The server no longer holds the photograph of this link; choose it again, the phrases are kept.");
    else fail(error);
  }
}

// phrases

async function add(text) {
  const found = await work("Reading …", () => server.phrases(text)); // one rule for the page and the command line
  if (!found) { $("phrase").value = text; return; }
  if (!found.length && text.trim()) say("No phrase was found in this sentence; type the phrase alone.");
  const most = state.model?.limits.phrases ?? 64;
  if (found.some((phrase) => !state.phrases.includes(phrase))) remember();
  state.phrases = [...new Set([...state.phrases, ...found])].slice(0, most);
  show();
  await answer();
  if (state.comparing) await compare();
}

function remove(phrase) {
  remember();
  state.phrases = state.phrases.filter((p) => p !== phrase);
  forget(phrase);
  show();
  $("phrase").focus();
}

function forget(phrase) {
  for (const slot of ["pinned", "hovered"]) if (state[slot] === phrase) state[slot] = null;
  state.colours.delete(phrase);
  state.open.delete(phrase);
}

function clear() {
  remember();
  state.phrases.forEach(forget);
  state.phrases = [];
  show();
  $("phrase").focus();
}

/** Phrases, settings and photographs as they were before the last change. */
async function undo() {
  const before = state.past.at(-1);
  if (!before) return;
  state.past = state.past.slice(0, -1);
  const { photo, ...rest } = before;
  state.phrases.filter((phrase) => !rest.phrases.includes(phrase)).forEach(forget);
  Object.assign(state, rest);
  tell("Undone");
  await select(photo);
}

// showing

function draw() {
  if (!state.photo) return;
  const canvas = $("canvas");
  const [over, alone] = layers();
  paint(canvas, state.photo, over, { strength: state.settings.strength, alone, cross: state.cross, chosen: state.box });
  canvas.setAttribute("aria-label", `Photograph ${state.photo.name}. ${over.map(spoken).join(" ")} Arrow keys move a `
    + "cross over it, Enter asks which words are there.");
  if (state.comparing) paintCompared($("compare"));
}

function spoken({ absent, label, boxes, outlines, peak }) {
  if (absent) return `${label}: not there.`;
  if (!boxes?.length) return "";
  const [x1, y1, x2, y2] = boxes[0].xyxy.map(Math.round);
  const outlined = outlines?.[0]?.length ? ", outlined" : "";
  return `${label}: box from ${x1},${y1} to ${x2},${y2}, peak at ${peak.map(Math.round)}${outlined}.`;
}

function show() {
  if (!state.model) return; // nothing can be shown yet
  const { photo, settings } = state;
  $("start").hidden = Boolean(photo);
  $("next").hidden = !state.phrases.length;
  $("next").textContent = `Next: choose a photograph in which to look for ${state.phrases.join(", ")}.`;
  $("photo").hidden = !photo;
  if (photo) {
    fit($("canvas"), photo.size);
    $("caption").textContent = `${photo.name}, ${photo.size.join(" × ")} pixels. ${hint()}`;
  }
  $("top-k").value = settings.top_k;
  $("gamma").value = settings.gamma;
  $("wanted").value = 100 * settings.wanted;
  $("strength").value = 100 * settings.strength;
  $("method").value = settings.method;
  $("top-k-value").value = settings.top_k;
  $("gamma-value").value = settings.gamma.toFixed(2);
  $("wanted-value").value = settings.wanted ? `${Math.round(100 * settings.wanted)} %` : "any";
  $("strength-value").value = `${Math.round(100 * settings.strength)} %`;
  $("compare-button").disabled = !photo;
  $("list-head").hidden = !state.phrases.length && !state.past.length;
  $("list-title").hidden = $("clear").hidden = !state.phrases.length;
  $("undo").disabled = !state.past.length;
  $("compare").hidden = !state.comparing;
  $("masks").setAttribute("aria-pressed", String(Boolean(settings.masks)));
  $("compare-button").setAttribute("aria-pressed", String(state.comparing));
  tray($("tray"), { select, drop });
  cards();
  draw();
  history.replaceState(null, "", address());
}

function hint() {
  const answered = state.phrases.map((p) => answerOf(p)).filter(Boolean);
  if (answered.length && answered.every(missing))
    return answered.some((a) => a.map) ? "Nothing was found; choose a phrase to see where it would look." : "Nothing was found.";
  return "Click a place to ask which words are there.";
}

function cards() {
  const at = document.activeElement?.closest?.(".card");
  const place = at && [at.dataset.phrase, [...at.querySelectorAll("button")].indexOf(document.activeElement)];
  $("cards").replaceChildren(...state.phrases.map((phrase) => {
    const answered = answerOf(phrase), boxes = boxesOf(answered);
    return card({
      phrase, answer: answered, colour: colourOf(phrase), boxes, notes: answered ? notesOf(answered, boxes) : [],
      under: Boolean(answered) && under(answered), calibrated: state.model.calibrated,
      pinned: state.pinned === phrase, open: state.open.has(phrase),
    }, on);
  }));
  if (place) [...$("cards").children].find((c) => c.dataset.phrase === place[0])?.querySelectorAll("button")[place[1]]?.focus();
}

const on = {
  hover: (phrase) => { state.hovered = phrase; draw(); },
  pin: (phrase) => { state.word = null; state.pinned = state.pinned === phrase ? null : phrase; show(); },
  open: async (phrase) => {
    if (!state.open.delete(phrase)) { state.open.add(phrase); await wordMaps(phrase); }
    show();
  },
  word: async (phrase, word) => {
    state.word = word && { phrase, word };
    if (word) await wordMaps(phrase);
    draw();
  },
  box: (phrase, rank) => { state.box = rank === null ? null : { phrase, rank }; draw(); },
  remove,
};

/** Answer every phrase by each of the methods shown side by side. */
async function compare() {
  layOut($("compare"));
  for (const method of COMPARED) await answer(method);
}

// keeping

async function copyLink() {
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  const said = copied ? "Link copied" : "Copy the address bar: it is the link";
  tell(said);
  $("copy-link").textContent = said; // where the eye is
  setTimeout(() => { $("copy-link").textContent = "Copy link"; }, 3000);
}

/** Everything that was asked, of every photograph. */
async function saveAnswers() {
  for (const photo of state.photos) await answer(undefined, photo);
  const format = $("format").value;
  if (format === "json") saveJson();
  else await work("Writing …", () => saveLabels(format));
}

async function restore() {
  const given = new URLSearchParams(location.hash.slice(1));
  state.model = await work("Starting …", server.model, restore);
  if (!state.model) return;
  menus();
  const { example, key, name } = readAddress(given);
  if (example) await takeExample(example);
  else if (key) await takeHeld(key, name);
  show();
}

// wiring

function menus() {
  $("method").replaceChildren(...state.model.methods.map((m) => new Option(NAMES[m] ?? m, m)));
  $("examples").replaceChildren(...state.model.examples.map((name) => {
    const button = Object.assign(document.createElement("button"), { type: "button", title: name });
    button.append(Object.assign(new Image(), { src: `examples/${name}`, alt: name.replace(".png", "") }));
    button.onclick = () => takeExample(name);
    return button;
  }));
}

let soon; // when a slider has come to rest

function slider(name, setting, scale = 1) {
  $(name).oninput = () => {
    state.settings[setting] = Number($(name).value) / scale;
    show();
    clearTimeout(soon);
    soon = setTimeout(outline, 300);
  };
}

function wire() {
  for (const button of document.querySelectorAll("[data-choose]")) button.onclick = () => $("file").click();
  $("file").onchange = () => { const files = [...$("file").files]; $("file").value = ""; if (files.length) takeAll(files); };
  addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].filter((f) => f.type.startsWith("image/"));
    if (files.length) { event.preventDefault(); takeAll(files); }
  });
  const files = (event) => event.dataTransfer.types.includes("Files"); // text may be dragged into the field as ever
  const over = (event, is) => { event.preventDefault(); $("stage").classList.toggle("over", is); };
  addEventListener("dragover", (event) => { if (files(event)) over(event, true); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(event, false); });
  addEventListener("drop", (event) => {
    if (!files(event)) return;
    over(event, false);
    takeAll([...event.dataTransfer.files]);
  });
  $("ask").onsubmit = (event) => { event.preventDefault(); const text = $("phrase").value; $("phrase").value = ""; add(text); };
  slider("top-k", "top_k");
  slider("gamma", "gamma");
  slider("wanted", "wanted", 100);
  slider("strength", "strength", 100);
  $("method").onchange = () => { state.settings.method = $("method").value; state.word = null; show(); answer(); };
  $("reset").onclick = () => { remember(); state.settings = defaults(); show(); answer(); };
  $("compare-button").onclick = async () => {
    state.comparing = !state.comparing;
    show();
    if (state.comparing) await compare();
  };
  $("masks").onclick = () => { state.settings.masks = 1 - state.settings.masks; show(); outline(); };
  const canvas = $("canvas");
  watch(canvas, { draw, asking, add });
  $("save-png").onclick = () => { draw(); savePicture(canvas); };
  $("save-json").onclick = saveAnswers;
  $("undo").onclick = undo;
  $("copy-link").onclick = copyLink;
  $("clear").onclick = clear;
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.pinned) { state.pinned = null; show(); }
    const typing = event.target.matches?.("input:not([type=range])") && event.target.value; // it has an undo of its own
    if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !typing) { event.preventDefault(); undo(); }
  });
  addEventListener("hashchange", () => { Object.assign(state, { photo: null, photos: [], past: [] }); restore(); });
  addEventListener("resize", draw);
  if (matchMedia("(max-width: 800px)").matches) $("settings").open = false;
}

wire();
restore();
