// The cards beside the photograph: a phrase, whether it is there, its words.

/** Why nothing is drawn for a phrase among others, or null. */
export function missing(answer) {
  if (!answer.words.length) return "names nothing to look for";
  if (!answer.words.some((w) => w.known)) return answer.words.length > 1 ? "unknown words" : "unknown word";
  if (answer.state === "not there") return percent(answer.present);
  return answer.map ? null : "its map is flat";
}

const percent = (share) => `${share > 0 && share < 0.01 ? "under 1" : Math.round(100 * share)}\u00a0%`;

function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** One card.
 *
 * @param given {phrase, colour, answer, notes: sentences, boxes: the best first, under: whether less sure than wanted}
 * @param on {hover(phrase | null), pin, remove, open, word(phrase, word | null), box(phrase, rank | null)}
 */
export function card({ phrase, colour, answer, notes, boxes, under, calibrated, pinned, open }, on) {
  const gone = answer && missing(answer);
  const name = element("button", { type: "button", className: "name", textContent: phrase });
  name.title = answer && !answer.map ? "" : "Keep showing this one alone";
  name.setAttribute("aria-pressed", String(pinned));
  name.onclick = () => on.pin(phrase);
  const more = element("button", { type: "button", className: "small", textContent: "words", disabled: !answer });
  more.title = "What each word of it looks at";
  more.setAttribute("aria-label", `words of ${phrase}`);
  more.setAttribute("aria-expanded", String(open));
  more.onclick = () => on.open(phrase);
  const away = element("button", { type: "button", className: "small", textContent: "✕", title: "Remove" });
  away.setAttribute("aria-label", `Remove ${phrase}`);
  away.onclick = () => on.remove(phrase);
  const made = element("li", { className: `card${gone ? " missing" : ""}${under ? " under" : ""}` }, [
    element("div", { className: "row" }, [name, presence(answer, gone, calibrated), more, away]),
  ]);
  made.dataset.phrase = phrase;
  made.style.setProperty("--colour", colour);
  made.onpointerenter = (event) => { if (event.pointerType === "mouse") on.hover(phrase); }; // a finger pins instead
  made.onpointerleave = () => on.hover(null);
  name.onfocus = () => { if (name.matches(":focus-visible")) on.hover(phrase); };
  name.onblur = () => on.hover(null);
  made.onkeydown = (event) => { if (event.key === "Delete") on.remove(phrase); };
  if (!gone && boxes.length) made.append(places(phrase, boxes, on));
  if (notes.length) made.append(element("p", { className: "note", textContent: notes.join(". ") }));
  if (open && answer) made.append(words(phrase, answer, on));
  return made;
}

/** How sure the first box is, and a button for each of several. */
function places(phrase, boxes, on) {
  const made = element("div", { className: "places" });
  if (boxes[0].share !== undefined) {
    made.append(`box: ${percent(boxes[0].share)} of the vote`);
    made.title = "How much of the probability of all candidate boxes lies on those that agree with this one";
  }
  if (boxes.length > 1) made.append(...boxes.map((_, rank) => {
    const one = element("button", { type: "button", className: "small", textContent: rank + 1, title: "Show this box alone" });
    one.setAttribute("aria-label", `box ${rank + 1} of ${phrase}`);
    one.onmouseenter = one.onfocus = () => on.box(phrase, rank);
    one.onmouseleave = one.onblur = () => on.box(phrase, null);
    return one;
  }));
  return made;
}

function presence(answer, gone, calibrated) {
  const made = element("span", { className: "presence" });
  if (!answer) made.textContent = "…";
  else if (gone) {
    const absent = answer.state === "not there", known = answer.words.some((w) => w.known);
    made.append(...(absent ? [answer.state, element("small", { textContent: gone })] : [`not found: ${gone}`]));
    if (absent) made.title = "The chance that it is in the photograph is small; its map shows where it would look.";
    else if (!known) made.title = "The model was not trained on these words: try a plainer one.";
  } else if (answer.present === null) made.textContent = calibrated ? "its noun is unknown" : "";
  else {
    const bar = element("progress", { value: answer.present, max: 1 });
    bar.setAttribute("aria-label", "chance that it is there");
    made.append(answer.state, bar, element("small", { textContent: percent(answer.present) }));
    made.title = "The chance that it is in the photograph";
  }
  return made;
}

function words(phrase, answer, on) {
  const made = answer.words.map((w) => {
    if (!w.known) return element("span", { className: "unknown", textContent: w.word, title: "The model does not know this word" });
    const read = w.read_as ? `${w.word}, read as ${w.read_as}` : w.word;
    const chip = element("button", { type: "button", textContent: `${read} ${percent(w.weight)}` });
    chip.title = "Its share of the phrase; point at it to see its map alone";
    chip.onmouseenter = chip.onfocus = () => on.word(phrase, w.word);
    chip.onmouseleave = chip.onblur = () => on.word(phrase, null);
    chip.onclick = () => on.word(phrase, w.word);
    return chip;
  });
  if (!made.length) made.push(element("span", { textContent: "no word names a thing" }));
  return element("div", { className: "chips" }, made);
}
