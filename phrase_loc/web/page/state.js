// All that the page knows, and what follows from it without asking the server: colours, boxes, layers to draw.

import { decodeMap, rank } from "./ranking.js";
import { COLOURS } from "./painting.js";
import { missing } from "./results.js";

export const NAMES = {
  contrastive_mwp: "contrastive MWP", mwp: "MWP", grad_cam: "Grad-CAM", cam: "CAM", gradient: "gradient",
};

const DISAGREE = "map and box disagree"; // how the server's sentence begins that speaks of its own first box

export const state = {
  model: null, // what GET api/model says
  photos: [], // {key, size, bitmap, blob, name, example, thumb, answers: method and phrase -> prediction with decoded map}
  photo: null, // the one of them that is shown
  phrases: [],
  colours: new Map(),
  open: new Set(), // phrases whose words are shown
  settings: {},
  past: [], // what undo restores, the youngest last
  pinned: null, hovered: null, word: null, box: null, cross: null, comparing: false,
};

export const defaults = () => ({
  top_k: 1, gamma: Math.round(20 * state.model.ranking.gamma) / 20, wanted: 0, strength: 0.7, masks: 0, method: state.model.method,
});

const id = (method, phrase) => `${method}\n${phrase}`;
export const answerOf = (phrase, method = state.settings.method, photo = state.photo) => photo?.answers.get(id(method, phrase));

/** Keep an answer of the server; `proposals` are those of the photograph. */
export function keep(photo, prediction, method, phrase, proposals) {
  const map = prediction.map && decodeMap(prediction.map);
  const candidates = Float64Array.of(...proposals, ...prediction.proposals);
  const note = (prediction.note ?? "").split(". ").filter((said) => said && !said.startsWith(DISAGREE)).join(". ");
  photo.answers.set(id(method, phrase), { ...prediction, note, map, side: prediction.map?.side, candidates, masks: new Map() });
}

/** Remember phrases, settings and photographs as they are, before something changes them. */
export function remember() {
  const { phrases, settings, photos, photo } = state;
  state.past = [...state.past, { phrases: [...phrases], settings: { ...settings }, photos: [...photos], photo }].slice(-50);
}

/** A colour that stays with its phrase while others come and go. */
export function colourOf(phrase) {
  if (!state.colours.has(phrase)) {
    const used = [...state.colours.values()];
    const count = (colour) => used.filter((u) => u === colour).length;
    state.colours.set(phrase, [...COLOURS].sort((a, b) => count(a) - count(b))[0]);
  }
  return state.colours.get(phrase);
}

/** The best boxes of an answer under the settings, best first. */
export function boxesOf(answered, photo = state.photo) {
  if (!answered?.map) return [];
  const { gamma, top_k } = state.settings;
  const same = gamma === defaults().gamma; // the model's own gamma may lie between two steps of the slider
  const options = { ...state.model.ranking, ...(same ? {} : { gamma }), top_k, added: answered.added };
  return rank(answered.map, answered.side, answered.candidates, photo.size, options);
}

/** The mask in a box of an answer, {size, counts, outlines}, once it was fetched; undefined where none is wanted. */
export const maskOf = (answered, { xyxy }) => (state.settings.masks ? answered.masks.get(String(xyxy)) : undefined);

/** Whether an answer is less certain than wanted; of an unknown noun nothing is certain. */
export const under = ({ present }) => Boolean(state.model.calibrated) && (present ?? 0) < state.settings.wanted;

/** What is odd in an answer and its boxes under the settings, in sentences. */
export function notesOf(answered, [box]) {
  const [x, y] = answered.peak ?? [];
  const outside = box && !(box.xyxy[0] <= x && x <= box.xyxy[2] && box.xyxy[1] <= y && y <= box.xyxy[3]);
  const percent = `${Math.round(100 * state.settings.wanted)}\u00a0%`;
  return [answered.note, outside && `${DISAGREE}: the dot, its peak, lies outside the box`,
    under(answered) && `under the ${percent} that are wanted, so it is not drawn; point at it to see it`].filter(Boolean);
}

export function layerOf(phrase, method) {
  const answered = answerOf(phrase, method);
  if (!answered?.map) return null;
  const { map, side, peak } = answered;
  // without its noun nothing is known of its being there; a model without calibration knows it of nothing
  const unsure = answered.state === "not sure" || (state.model.calibrated && answered.state === null);
  const absent = answered.state === "not there";
  const boxes = absent ? [] : boxesOf(answered);
  const outlines = boxes.map((box) => maskOf(answered, box)?.outlines ?? []);
  return { phrase, map, side, peak, absent, unsure, boxes, outlines, colour: colourOf(phrase), label: unsure ? `${phrase}?` : phrase };
}

/** What lies over the photograph: one word's map, one phrase alone, or all phrases that were found. */
export function layers() {
  if (state.word) {
    const of = answerOf(state.word.phrase)?.wordMaps?.[state.word.word];
    if (of) return [[{ ...of, colour: colourOf(state.word.phrase) }], true];
  }
  const alone = state.hovered ?? state.pinned;
  if (alone) return [[layerOf(alone)].filter(Boolean), true];
  const found = state.phrases.filter((p) => answerOf(p) && !missing(answerOf(p)) && !under(answerOf(p)));
  return [found.map((p) => layerOf(p)).filter(Boolean), false];
}
