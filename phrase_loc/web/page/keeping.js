// What can be taken away: the picture, the answers as JSON, and a link that restores them.

import * as server from "./server.js";
import { missing } from "./results.js";
import { answerOf, boxesOf, defaults, maskOf, notesOf, state, under } from "./state.js";

function save(blob, ending) {
  const name = `${state.photo.name.replace(/\.[^.]*$/, "")}_phrases.${ending}`;
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

export const savePicture = (canvas) => canvas.toBlob((blob) => save(blob, "png"));

/** The object of `phrase-loc query --json`, with the settings of the page. */
function answersOf(photo) {
  const answered = state.phrases.map((asked) => answerOf(asked, undefined, photo)).filter(Boolean);
  const predictions = answered.map((answer) => {
    const { phrase, words, present, state, peak } = answer, boxes = boxesOf(answer, photo);
    for (const box of boxes) if (maskOf(answer, box)) box.mask = runs(maskOf(answer, box));
    return { phrase, words, note: notesOf(answer, boxes).join(". ") || null, present, state, peak, boxes };
  });
  const { method, gamma, top_k } = state.settings;
  return { image: photo.name, size: photo.size, predictions, settings: { method, gamma, top_k } };
}

const runs = ({ size, counts }) => ({ size, counts });
const ENDINGS = {
  coco: "coco.json", labelstudio: "labelstudio.json", cvat: "cvat.xml", jsonl: "labels.jsonl", parquet: "labels.parquet",
  yolo: "yolo.zip", voc: "voc.zip", fiftyone: "fiftyone.zip",
};

/** The boxes (and masks) that are drawn, of all photographs, in the format of another tool. */
export async function saveLabels(format) {
  const labels = (photo) => state.phrases.flatMap((phrase) => {
    const answered = answerOf(phrase, undefined, photo);
    if (!answered || missing(answered) || under(answered)) return [];
    return boxesOf(answered, photo).map((box) => {
      const mask = maskOf(answered, box);
      return { phrase, xyxy: box.xyxy, present: answered.present, ...(mask && { mask: runs(mask) }) };
    });
  });
  const photographs = state.photos.map((photo) => ({ name: photo.name, size: photo.size, key: photo.key, labels: labels(photo) }));
  const written = await server.labels({ format, photographs }).catch(async (error) => {
    if (error.status !== 404) throw error; // else some have left the server's memory
    for (const { blob, name } of state.photos) await server.look(blob, name);
    return server.labels({ format, photographs });
  });
  save(written, ENDINGS[format]);
}

/** The photograph's answers as JSON, those of several as JSON Lines. */
export function saveJson() {
  if (state.photos.length < 2) return save(new Blob([JSON.stringify(answersOf(state.photo), null, 1)]), "json");
  save(new Blob(state.photos.map((photo) => `${JSON.stringify(answersOf(photo))}\n`)), "jsonl");
}

/** Photograph, phrases and settings as the part of the address after #. */
export function address() {
  const given = new URLSearchParams();
  if (state.photo?.example) given.set("example", state.photo.example);
  else if (state.photo) { given.set("photo", state.photo.key); given.set("name", state.photo.name); }
  for (const phrase of state.phrases) given.append("p", phrase);
  for (const [name, value] of Object.entries(state.settings))
    if (value !== defaults()[name]) given.set(name, value);
  return `#${given}`;
}

/** Put phrases and settings of an address into the state: {example, key, name} of its photograph. */
export function readAddress(given) {
  state.settings = defaults();
  for (const [name, low, high] of [["top_k", 1, 10], ["gamma", 0, 1], ["wanted", 0, 0.95], ["strength", 0, 1], ["masks", 0, 1]]) {
    const value = Number(given.get(name));
    if (given.has(name) && value >= low && value <= high) state.settings[name] = name === "top_k" ? Math.round(value) : value;
  }
  if (state.model.methods.includes(given.get("method"))) state.settings.method = given.get("method");
  state.phrases = [...new Set(given.getAll("p"))].slice(0, state.model.limits.phrases);
  const example = given.get("example");
  return { example: state.model.examples.includes(example) ? example : null, key: given.get("photo"), name: given.get("name") };
}
