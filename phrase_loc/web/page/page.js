// The page: one photograph, some phrases, their answers. `state` is all there is; `show` draws it. The server is
// asked for new phrases, methods and words only; sliders re-rank and recolour what was sent.

import * as server from "./server.js";
import { COMPARED, layOut, paintCompared } from "./compare.js";
import { fail, say, tell, work } from "./messages.js";
import { watch } from "./pointing.js";
import { decodeMap } from "./ranking.js";
import { fit, paint } from "./painting.js";
import { card, missing } from "./results.js";
import { address, readAddress, saveJson, savePicture } from "./keeping.js";
import { NAMES, answerOf, colourOf, defaults, keep, layers, state } from "./state.js";

const $ = (id) => document.getElementById(id);
const TRY = {
  "astronaut.png": ["a smiling woman", "an orange suit", "a helmet"],
  "coffee.png": ["a red cup", "a wooden table"], "chelsea.png": ["the cat", "green eyes"],
};

// asking the server

/** Ask about the photograph; if it has left the server's memory, send it once more. */
async function asking(question) {
  const photo = state.photo;
  try {
    return await question(photo.key);
  } catch (error) {
    if (error.status !== 404 || !photo.blob) throw error;
    await server.look(photo.blob, photo.name);
    return question(photo.key);
  }
}

/** Fetch what is not answered yet, then show. */
async function answer(method = state.settings.method) {
  const photo = state.photo;
  const open = state.phrases.filter((phrase) => !answerOf(phrase, method));
  if (photo && open.length) await work("Looking …", async () => {
    const found = await asking((key) => server.localize(key, open, method));
    if (photo !== state.photo) return; // another photograph has come meanwhile
    found.predictions.forEach((p, i) => keep(p, method, open[i], found.proposals));
  });
  show();
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

// the photograph

async function take(blob, name, example = null) {
  const limit = state.model?.limits.upload_bytes;
  if (limit && blob.size > limit)
    return say(`This file has ${(blob.size / 2 ** 20).toFixed(1)} MB, more than the ${limit / 2 ** 20} MB that are accepted.`);
  await work("Sending the photograph …", async () => {
    const { key, size } = await server.look(blob, name);
    const bitmap = await createImageBitmap(blob).catch(() => null);
    if (!bitmap) setTimeout(() => say("Your browser cannot show this kind of file; boxes are drawn on grey."));
    Object.assign(state, { photo: { key, size, bitmap, blob, name, example }, cross: null, pinned: null, word: null });
    state.answers.clear();
    $("here").hidden = true;
    if (example && !state.phrases.length) state.phrases = [...(TRY[example] ?? [])];
    show();
    if (matchMedia("(min-width: 801px)").matches) $("phrase").focus();
  });
  if (state.photo) await answer();
  if (state.comparing) await compare();
}

const takeExample = (name) => work("Fetching the example …", async () => take(await server.example(name), name, name));

async function takeHeld(key, name) {
  try {
    await take(await server.image(key), name || "photograph");
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
  state.phrases = [...new Set([...state.phrases, ...found])].slice(0, most);
  if (!state.photo && found.length) say("Now choose a photograph to look at.");
  show();
  await answer();
  if (state.comparing) await compare();
}

function remove(phrase) {
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

// showing

function draw() {
  if (!state.photo) return;
  const canvas = $("canvas");
  const [over, alone] = layers();
  paint(canvas, state.photo, over, { strength: state.settings.strength, alone, cross: state.cross });
  canvas.setAttribute("aria-label", `Photograph ${state.photo.name}. ${over.map(spoken).join(" ")} Arrow keys move a `
    + "cross over it, Enter asks which words are there.");
  if (state.comparing) paintCompared($("compare"));
}

const spoken = (layer) => layer.absent ? `${layer.label}: not there.` : layer.boxes?.length
  ? `${layer.label}: box from ${layer.boxes[0].xyxy.slice(0, 2).map(Math.round)} to ${layer.boxes[0].xyxy.slice(2).map(Math.round)}.` : "";

function show() {
  if (!state.model) return; // nothing can be shown yet
  const { photo, settings } = state;
  $("start").hidden = Boolean(photo);
  $("photo").hidden = !photo;
  if (photo) {
    fit($("canvas"), photo.size);
    $("caption").textContent = `${photo.name}, ${photo.size.join(" × ")} pixels. ${hint()}`;
  }
  $("top-k").value = settings.top_k;
  $("gamma").value = settings.gamma;
  $("strength").value = 100 * settings.strength;
  $("method").value = settings.method;
  $("top-k-value").value = settings.top_k;
  $("gamma-value").value = settings.gamma.toFixed(2);
  $("strength-value").value = `${Math.round(100 * settings.strength)} %`;
  $("compare-button").disabled = !photo;
  $("list-head").hidden = !state.phrases.length;
  $("compare").hidden = !state.comparing;
  $("compare-button").setAttribute("aria-pressed", String(state.comparing));
  cards();
  draw();
  remember();
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
  $("cards").replaceChildren(...state.phrases.map((phrase) => card(
    { phrase, colour: colourOf(phrase), answer: answerOf(phrase), pinned: state.pinned === phrase, open: state.open.has(phrase) },
    on)));
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
  remove,
};

/** Answer every phrase by each of the methods shown side by side. */
async function compare() {
  layOut($("compare"));
  for (const method of COMPARED) await answer(method);
}

// keeping

/** Write photograph, phrases and settings into the address. */
function remember() {
  if (state.model) history.replaceState(null, "", address());
}

async function copyLink() {
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  tell(copied ? "Link copied" : "Copy the address bar: it is the link");
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

function slider(name, setting, scale = 1) {
  $(name).oninput = () => { state.settings[setting] = Number($(name).value) / scale; show(); };
}

function wire() {
  for (const button of document.querySelectorAll("[data-choose]")) button.onclick = () => $("file").click();
  $("file").onchange = () => { const file = $("file").files[0]; if (file) take(file, file.name); $("file").value = ""; };
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((f) => f.type.startsWith("image/"));
    if (file) { event.preventDefault(); take(file, file.name || "pasted.png"); }
  });
  const files = (event) => event.dataTransfer.types.includes("Files"); // text may be dragged into the field as ever
  const over = (event, is) => { event.preventDefault(); $("stage").classList.toggle("over", is); };
  addEventListener("dragover", (event) => { if (files(event)) over(event, true); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(event, false); });
  addEventListener("drop", (event) => {
    if (!files(event)) return;
    over(event, false);
    const file = event.dataTransfer.files[0];
    if (file) take(file, file.name);
  });
  $("ask").onsubmit = (event) => { event.preventDefault(); const text = $("phrase").value; $("phrase").value = ""; add(text); };
  slider("top-k", "top_k");
  slider("gamma", "gamma");
  slider("strength", "strength", 100);
  $("method").onchange = () => { state.settings.method = $("method").value; state.word = null; show(); answer(); };
  $("reset").onclick = () => { state.settings = defaults(); show(); answer(); };
  $("compare-button").onclick = async () => {
    state.comparing = !state.comparing;
    show();
    if (state.comparing) await compare();
  };
  const canvas = $("canvas");
  watch(canvas, { draw, asking, add });
  $("save-png").onclick = () => { draw(); savePicture(canvas); };
  $("save-json").onclick = saveJson;
  $("copy-link").onclick = copyLink;
  $("clear").onclick = () => { state.phrases.forEach(forget); state.phrases = []; show(); $("phrase").focus(); };
  addEventListener("keydown", (event) => { if (event.key === "Escape" && state.pinned) { state.pinned = null; show(); } });
  addEventListener("hashchange", () => { state.photo = null; state.answers.clear(); restore(); });
  addEventListener("resize", draw);
  if (matchMedia("(max-width: 800px)").matches) $("settings").open = false;
}

wire();
restore();
