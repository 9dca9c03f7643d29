// The questions to the server. Every failure becomes an Error whose message is one sentence for the person.

let token = sessionStorage.getItem("token") || "";

export function setToken(value) {
  token = value;
  sessionStorage.setItem("token", value);
}

async function call(path, options = {}) {
  let answer;
  try {
    const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; is it still running?");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const failure = new Error(sentence(body.error || `the server answered ${answer.status}`));
  failure.status = answer.status;
  throw failure;
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");
const json = (value) => ({
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value),
});

function form(fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, ...[].concat(value));
  return { method: "POST", body };
}

export const model = async () => (await call("api/model")).json();
export const look = async (blob, name) => (await call("api/look", form({ image: [blob, name] }))).json();
export const image = async (key) => (await call(`api/image/${encodeURIComponent(key)}`)).blob();
export const example = async (name) => (await call(`examples/${encodeURIComponent(name)}`)).blob();
export const phrases = async (text) => (await (await call("api/phrases", json({ text }))).json()).phrases;
export const wordsAt = async (key, x, y) => (await (await call("api/words-at", json({ key, x, y }))).json()).words;
export const masks = async (asked) => (await (await call("api/masks", json(asked))).json()).masks;
export const labels = async (asked) => (await call("api/export", json(asked))).blob();

export async function localize(key, phrases, method, words = false) {
  const fields = { key, phrases: JSON.stringify(phrases), method, maps: "true", words: String(words), top_k: "1" };
  return (await call("api/localize", form(fields))).json();
}
