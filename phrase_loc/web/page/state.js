// All that the page knows, and what follows from it without asking the server: colours, boxes, layers to draw.

import { decodeMap, rank } from "./ranking.js";
import { COLOURS } from "./painting.js";
import { missing } from "./results.js";

export const NAMES = {
  contrastive_mwp: "contrastive MWP", mwp: "MWP", grad_cam: "Grad-CAM", cam: "CAM", gradient: "gradient",
};

export const state = {
  model: null, // what GET api/model says
  photo: null, // {key, size, bitmap, blob, name, example}
  phrases: [],
  answers: new Map(), // method and phrase -> prediction with decoded map
  colours: new Map(),
  open: new Set(), // phrases whose words are shown
  settings: {},
  pinned: null, hovered: null, word: null, cross: null, comparing: false,
};

export const defaults = () => ({
  top_k: 1, gamma: Math.round(20 * state.model.ranking.gamma) / 20, strength: 0.7, method: state.model.method,
});

const id = (method, phrase) => `${method}\n${phrase}`;
export const answerOf = (phrase, method = state.settings.method) => state.answers.get(id(method, phrase));

/** Keep an answer of the server; `proposals` are those of the photograph. */
export function keep(prediction, method, phrase, proposals) {
  const map = prediction.map && decodeMap(prediction.map);
  const candidates = Float64Array.of(...proposals, ...prediction.proposals);
  state.answers.set(id(method, phrase), { ...prediction, map, side: prediction.map?.side, candidates });
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
export function boxesOf(answered) {
  if (!answered?.map) return [];
  const { gamma, top_k } = state.settings;
  const same = gamma === defaults().gamma; // the model's own gamma may lie between two steps of the slider
  const options = { ...state.model.ranking, ...(same ? {} : { gamma }), top_k };
  return rank(answered.map, answered.side, answered.candidates, state.photo.size, options);
}

export function layerOf(phrase, method) {
  const answered = answerOf(phrase, method);
  if (!answered?.map) return null;
  const { map, side, peak } = answered;
  const absent = answered.state === "not there", unsure = answered.state === "not sure";
  const boxes = absent ? [] : boxesOf(answered);
  return { map, side, peak, absent, unsure, boxes, colour: colourOf(phrase), label: unsure ? `${phrase}?` : phrase };
}

/** What lies over the photograph: one word's map, one phrase alone, or all phrases that were found. */
export function layers() {
  if (state.word) {
    const of = answerOf(state.word.phrase)?.wordMaps?.[state.word.word];
    if (of) return [[{ ...of, colour: colourOf(state.word.phrase) }], true];
  }
  const alone = state.hovered ?? state.pinned;
  if (alone) return [[layerOf(alone)].filter(Boolean), true];
  const found = state.phrases.filter((p) => answerOf(p) && !missing(answerOf(p)));
  return [found.map((p) => layerOf(p)).filter(Boolean), false];
}
