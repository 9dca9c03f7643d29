// The cards beside the photograph: a phrase, whether it is there, its words.

export const SEEN = 0.3; // probability below which a phrase is called not found

/** Why a phrase is "not found", or null when it is found (or the model cannot say). */
export function missing(answer) {
  if (!answer.words.length) return "Not found: these words name nothing to look for.";
  if (!answer.words.some((w) => w.known)) return "Not found: the model knows no word of this.";
  if (answer.present !== null && answer.present < SEEN)
    return `Not found: probably not in this photograph (${percent(answer.present)}).`;
  return null;
}

export const percent = (share) => `${share > 0 && share < 0.01 ? "under 1" : Math.round(100 * share)} %`;

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
  const name = element("button", { type: "button", className: "name", textContent: phrase, title: "Show its map alone" });
  name.setAttribute("aria-pressed", String(pinned));
  name.onclick = () => on.pin(phrase);
  const more = element("button", { type: "button", className: "small", textContent: "words", disabled: !answer });
  more.setAttribute("aria-expanded", String(open));
  more.onclick = () => on.open(phrase);
  const away = element("button", { type: "button", className: "small", textContent: "✕", title: "Remove" });
  away.setAttribute("aria-label", `Remove ${phrase}`);
  away.onclick = () => on.remove(phrase);
  const made = element("li", { className: gone ? "card missing" : "card" }, [
    element("div", { className: "row" }, [name, more, away]), presence(answer, gone),
  ]);
  made.dataset.phrase = phrase;
  made.style.setProperty("--colour", colour);
  made.onmouseenter = () => on.hover(phrase);
  made.onmouseleave = () => on.hover(null);
  name.onfocus = () => { if (name.matches(":focus-visible")) on.hover(phrase); };
  name.onblur = () => on.hover(null);
  made.onkeydown = (event) => { if (event.key === "Delete") on.remove(phrase); };
  if (open && answer) made.append(words(phrase, answer, on));
  return made;
}

function presence(answer, gone) {
  if (!answer) return element("div", { className: "presence", textContent: "…" });
  if (gone) return element("div", { className: "presence", textContent: gone });
  if (answer.present === null) return element("div", { className: "presence", textContent: "" });
  const bar = element("progress", { value: answer.present, max: 1 });
  bar.setAttribute("aria-label", "probability that it is there");
  return element("div", { className: "presence" }, [bar, `is there: ${percent(answer.present)}`]);
}

function words(phrase, answer, on) {
  const made = answer.words.map((w) => {
    if (!w.known) return element("span", { className: "unknown", textContent: w.word, title: "unknown to the model" });
    const chip = element("button", { type: "button", textContent: `${w.word} ${percent(w.weight)}` });
    chip.title = "Show the map of this word alone";
    chip.onmouseenter = chip.onfocus = () => on.word(phrase, w.word);
    chip.onmouseleave = chip.onblur = () => on.word(phrase, null);
    chip.onclick = () => on.word(phrase, w.word);
    return chip;
  });
  if (!made.length) made.push(element("span", { textContent: "no content words" }));
  return element("div", { className: "chips" }, made);
}
