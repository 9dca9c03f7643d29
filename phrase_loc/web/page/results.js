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
 * @param on {hover(phrase | null), pin, remove, open, word(phrase, word | null)}
 */
export function card({ phrase, colour, answer, pinned, open }, on) {
  const gone = answer && missing(answer);
  const name = element("button", { type: "button", className: "name", textContent: phrase });
  name.title = answer && !answer.map ? "" : "Keep showing this one alone";
  name.setAttribute("aria-pressed", String(pinned));
  name.onclick = () => on.pin(phrase);
  const more = element("button", { type: "button", className: "small", textContent: "words", disabled: !answer });
  more.title = "What each word of it looks at";
  more.setAttribute("aria-expanded", String(open));
  more.onclick = () => on.open(phrase);
  const away = element("button", { type: "button", className: "small", textContent: "✕", title: "Remove" });
  away.setAttribute("aria-label", `Remove ${phrase}`);
  away.onclick = () => on.remove(phrase);
  const made = element("li", { className: gone ? "card missing" : "card" }, [
    element("div", { className: "row" }, [name, presence(answer, gone), more, away]),
  ]);
  made.dataset.phrase = phrase;
  made.style.setProperty("--colour", colour);
  made.onpointerenter = (event) => { if (event.pointerType === "mouse") on.hover(phrase); }; // a finger pins instead
  made.onpointerleave = () => on.hover(null);
  name.onfocus = () => { if (name.matches(":focus-visible")) on.hover(phrase); };
  name.onblur = () => on.hover(null);
  made.onkeydown = (event) => { if (event.key === "Delete") on.remove(phrase); };
  if (answer?.note) made.append(element("p", { className: "note", textContent: answer.note }));
  if (open && answer) made.append(words(phrase, answer, on));
  return made;
}

function presence(answer, gone) {
  const made = element("span", { className: "presence" });
  if (!answer) made.textContent = "…";
  else if (gone) {
    const absent = answer.state === "not there", known = answer.words.some((w) => w.known);
    made.append(...(absent ? [answer.state, element("small", { textContent: gone })] : [`not found: ${gone}`]));
    if (absent) made.title = "The chance that it is in the photograph is small; its map shows where it would look.";
    else if (!known) made.title = "The model was not trained on these words: try a plainer one.";
  } else if (answer.present !== null) {
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
