// What phrase_loc/ranking.py does, for the sliders: sums in boxes from an integral image, a score for each box,
// box voting, greedy suppression. Boxes are flat arrays x1, y1, x2, y2, ... in pixels of the original
// photograph, `size` is [width, height].

const TINY = 1e-6;
const LEAD = 1e-3;
const SPREAD_POWER = 3.0, SPREAD_OFFSET = 3.54; // from the mean of a map to the log of a thing's share of the image
const SMALLEST = 2 ** -126; // of the 32-bit floats in which Python ranks

/** Levels 0..1 of a map as the server sends it: {side, data} -> Float64Array(side * side), rows from the top. */
export function decodeMap({ side, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: side * side }, (_, i) => view.getUint16(2 * i, true) / 65535);
}

/** Sums above and left of each corner: side * side -> (side + 1)^2. */
export function integral(map, side) {
  const wide = side + 1;
  const table = new Float64Array(wide * wide);
  for (let y = 1; y <= side; y++) {
    let row = 0;
    for (let x = 1; x <= side; x++) {
      row += map[(y - 1) * side + x - 1];
      table[y * wide + x] = table[(y - 1) * wide + x] + row;
    }
  }
  return table;
}

function at(table, side, y, x) {
  const top = Math.min(Math.max(Math.floor(y), 0), side - 1);
  const left = Math.min(Math.max(Math.floor(x), 0), side - 1);
  const v = y - top, u = x - left, wide = side + 1, i = top * wide + left;
  const upper = table[i] * (1 - u) + table[i + 1] * u;
  const lower = table[i + wide] * (1 - u) + table[i + wide + 1] * u;
  return upper * (1 - v) + lower * v;
}

function scoreBoxes(map, side, boxes, [width, height], gamma, spread) {
  let low = Infinity, high = -Infinity;
  for (const v of map) { low = Math.min(low, v); high = Math.max(high, v); }
  const raised = high > low ? map.map((v) => v - low) : map.map(() => 1); // a flat map weighs all places alike
  const table = integral(raised, side);
  const total = table[table.length - 1];
  const mean = total / (side * side) / (high > low ? high - low : 1);
  const expected = Math.min(0, SPREAD_OFFSET + SPREAD_POWER * Math.log(mean));
  const clip = (v, most) => Math.min(Math.max(v, 0), most);
  return Float64Array.from({ length: boxes.length / 4 }, (_, i) => {
    const x1 = clip(boxes[4 * i], width), y1 = clip(boxes[4 * i + 1], height);
    const x2 = clip(boxes[4 * i + 2], width), y2 = clip(boxes[4 * i + 3], height);
    const sx = side / width, sy = side / height;
    const sum = at(table, side, y2 * sy, x2 * sx) - at(table, side, y1 * sy, x2 * sx)
      - at(table, side, y2 * sy, x1 * sx) + at(table, side, y1 * sy, x1 * sx);
    const share = Math.max(((x2 - x1) * (y2 - y1)) / (width * height), TINY);
    const area = Math.log(share);
    return Math.log(Math.max(sum / total, TINY)) - gamma * area - spread / 2 * (area - expected) ** 2;
  });
}

/** Intersection over union of boxes i and j. */
export function iou(boxes, i, j) {
  const [a, b] = [4 * i, 4 * j];
  const w = Math.min(boxes[a + 2], boxes[b + 2]) - Math.max(boxes[a], boxes[b]);
  const h = Math.min(boxes[a + 3], boxes[b + 3]) - Math.max(boxes[a + 1], boxes[b + 1]);
  const shared = Math.max(w, 0) * Math.max(h, 0);
  const area = (k) => Math.max(boxes[k + 2] - boxes[k], 0) * Math.max(boxes[k + 3] - boxes[k + 1], 0);
  const union = area(a) + area(b) - shared;
  return union > 0 ? shared / union : 0;
}

/** For each box its overlaps of at least a half, as a Uint8Array: row i, column j. Kept while the boxes live, since
 * a slider asks again and again. */
function neighbours(boxes) {
  if (!NEAR.has(boxes)) {
    const count = boxes.length / 4, near = new Uint8Array(count * count);
    for (let i = 0; i < count; i++) for (let j = 0; j < count; j++) near[i * count + j] = iou(boxes, i, j) >= 0.5;
    NEAR.set(boxes, near);
  }
  return NEAR.get(boxes);
}
const NEAR = new WeakMap();

/** Box voting: the mean of those that overlap the winner, a hair above the best score, and their share of the vote. */
function vote(boxes, scores, temperature, weight = 0.5) {
  const count = scores.length, near = neighbours(boxes);
  const best = scores.reduce((most, s) => Math.max(most, s), -Infinity);
  const truth = scores.map((s) => Math.exp((s - best) / temperature));
  const total = truth.reduce((sum, t) => sum + t, 0);
  let winner = 0, most = -Infinity;
  for (let i = 0; i < count; i++) {
    let vote = 0;
    for (let j = 0; j < count; j++) if (near[i * count + j]) vote += truth[j];
    const value = scores[i] + weight * Math.log(Math.max(vote / total, SMALLEST));
    if (value > most) { most = value; winner = i; }
  }
  const share = truth.map((t, j) => t / total * near[winner * count + j] + (j === winner ? SMALLEST : 0));
  const whole = share.reduce((sum, s) => sum + s, 0);
  const merged = [0, 1, 2, 3].map((k) => share.reduce((sum, s, j) => sum + s / whole * boxes[4 * j + k], 0));
  return [Float64Array.of(...boxes, ...merged), Float64Array.of(...scores, best + LEAD), whole];
}

/** The best boxes of one map: [{xyxy, score}], best first; `boxes` is a Float64Array, `added` what the box ranker adds to
 * their scores. The first of a vote also has its `share`: what part of the probability of all boxes lies on those that
 * overlap it by half. */
export function rank(map, side, boxes, size, { gamma, spread = 0, temperature = 0, nms = 0.5, top_k = 5, added = [] }) {
  if (!boxes.length) return [];
  let scores = scoreBoxes(map, side, boxes, size, gamma, spread).map((s, i) => s + (added[i] ?? 0)), share;
  if (temperature > 0) [boxes, scores, share] = vote(boxes, scores, temperature);
  const order = Array.from(scores.keys()).filter((i) => scores[i] > -Infinity).sort((a, b) => scores[b] - scores[a]);
  const kept = [];
  for (const i of order) {
    if (kept.length >= top_k) break;
    if (kept.every((k) => iou(boxes, k, i) <= nms)) kept.push(i);
  }
  return kept.map((i, place) => ({
    xyxy: Array.from(boxes.slice(4 * i, 4 * i + 4)), score: scores[i], ...(place === 0 && share !== undefined && { share }),
  }));
}
