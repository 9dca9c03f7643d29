// The maps of several methods side by side.

import { fit, paint } from "./painting.js";
import { NAMES, layerOf, state } from "./state.js";

export const COMPARED = ["contrastive_mwp", "mwp", "grad_cam"];

/** One small canvas for each method in `place`. */
export function layOut(place) {
  place.replaceChildren(...COMPARED.map((method) => {
    const figure = document.createElement("figure");
    const canvas = figure.appendChild(document.createElement("canvas"));
    canvas.dataset.method = method;
    fit(canvas, state.photo.size, [500, 500]);
    figure.appendChild(document.createElement("figcaption")).textContent = NAMES[method];
    return figure;
  }));
}

/** Show the phrase that is pointed at, or else the first, by each method. */
export function paintCompared(place) {
  const phrase = state.hovered ?? state.pinned ?? state.phrases[0];
  for (const canvas of place.querySelectorAll("canvas")) {
    const layer = phrase && layerOf(phrase, canvas.dataset.method);
    paint(canvas, state.photo, layer ? [{ ...layer, label: "" }] : [], { strength: state.settings.strength, alone: true });
    canvas.parentElement.lastChild.textContent = `${NAMES[canvas.dataset.method]}: ${phrase ?? "no phrase"}`;
  }
}
