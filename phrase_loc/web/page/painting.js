// Photograph, maps and boxes on a canvas. Maps come as levels 0..1 of a small square grid; the browser's own
// smoothing brings them to the photograph's size.

import { drawLabels } from "./labels.js";

/** Okabe and Ito's colours for colour-blind readers, as in phrase_loc/drawing.py. */
export const COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"];
const RAMP = [[0, 0, 0], [120, 10, 30], [230, 90, 10], [255, 200, 40], [255, 250, 200]];
const SIDES = [1200, 1600]; // least and most pixels of a canvas' longer side

/** Give a canvas the photograph's shape; small photographs are enlarged, so that frames and names stay sharp. */
export function fit(canvas, [width, height], [least, most] = SIDES) {
  const longest = Math.max(width, height);
  const scale = Math.min(Math.max(longest, least), most) / longest;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
}

/** The photograph, decoded no larger than a canvas shows it; null where the browser cannot. */
export async function picture({ blob, size: [width, height] }, longest = SIDES[1]) {
  const scale = longest / Math.max(width, height);
  const smaller = { resizeWidth: Math.max(1, Math.round(width * scale)), resizeHeight: Math.max(1, Math.round(height * scale)) };
  return createImageBitmap(blob, scale < 1 ? { ...smaller, resizeQuality: "high" } : {}).catch(() => null);
}

/** Draw a photograph with layers.
 *
 * @param layers [{map, side, colour, boxes: [{xyxy}], outlines: [[[x, y], ...], ...] of each box, label, peak, unsure,
 *   absent}] in pixels of `photo.size`: the box of an unsure one is dashed, the peak of an absent one hollow
 * @param options {strength 0..1, alone: one map in warm colours instead of tints, cross: {x, y} or null,
 *   chosen: {phrase, rank} of the one box that is drawn, or null for all}
 */
export function paint(canvas, photo, layers, { strength, alone = false, cross = null, chosen = null }) {
  const c = canvas.getContext("2d");
  c.clearRect(0, 0, canvas.width, canvas.height);
  c.imageSmoothingEnabled = true;
  c.imageSmoothingQuality = "high";
  if (photo.bitmap) c.drawImage(photo.bitmap, 0, 0, canvas.width, canvas.height);
  else { c.fillStyle = "#777"; c.fillRect(0, 0, canvas.width, canvas.height); }
  for (const layer of layers) if (layer.map && strength > 0) glow(c, layer, strength, alone);
  const scale = canvas.width / photo.size[0];
  const thick = Math.max(2, canvas.width / (canvas.clientWidth || canvas.width) * 2.5);
  const drawn = chosen ? layers.filter((l) => l.phrase === chosen.phrase) : layers;
  for (const layer of drawn) shade(c, layer, scale, thick, chosen?.rank);
  for (const layer of drawn) frame(c, layer, scale, thick, chosen?.rank);
  for (const layer of drawn) if (layer.peak) dot(c, layer, scale, thick);
  drawLabels(c, drawn, scale, thick, chosen?.rank);
  if (cross) aim(c, cross.x * scale, cross.y * scale, thick);
}

function glow(c, { map, side, colour }, strength, alone) {
  const small = new OffscreenCanvas(side, side);
  const s = small.getContext("2d");
  const picture = s.createImageData(side, side);
  const tint = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  map.forEach((level, i) => {
    const [rgb, alpha] = alone ? [warm(level), 0.85 - 0.4 * level] : [tint, 0.75 * level ** 2.5];
    picture.data.set([...rgb, 255 * alpha * strength], 4 * i);
  });
  s.putImageData(picture, 0, 0);
  c.drawImage(small, 0, 0, c.canvas.width, c.canvas.height);
}

function warm(level) {
  const place = Math.min(level, 0.9999) * (RAMP.length - 1), left = Math.floor(place), share = place - left;
  return RAMP[left].map((v, i) => v * (1 - share) + RAMP[left + 1][i] * share);
}

/** The outlines of masks, filled. */
function shade(c, { outlines = [], colour }, scale, thick, only) {
  for (const [rank, outline] of outlines.entries()) {
    if (only !== undefined && rank !== only) continue;
    const path = new Path2D(outline.map((points) => `M${points.map(([x, y]) => `${x * scale},${y * scale}`).join("L")}Z`).join(""));
    c.fillStyle = `${colour}66`;
    c.fill(path);
    for (const [style, width] of [["rgba(0,0,0,.75)", 1.2], [colour, 0.6]]) {
      c.strokeStyle = style;
      c.lineWidth = thick * width;
      c.stroke(path);
    }
  }
}

function frame(c, { boxes = [], colour, unsure }, scale, thick, only) {
  [...boxes.entries()].reverse().forEach(([rank, { xyxy }]) => {
    if (only !== undefined && rank !== only) return;
    const [x1, y1, x2, y2] = inside(c, xyxy.map((v) => v * scale), thick);
    const width = rank === 0 ? thick : thick * 0.6;
    c.setLineDash(rank > 0 ? [thick * 1.5, thick * 2] : unsure ? [thick * 6, thick * 2] : []);
    for (const [style, extra] of [["rgba(0,0,0,.75)", thick * 0.8], [colour, 0]]) {
      c.strokeStyle = style;
      c.lineWidth = width + extra;
      c.strokeRect(x1, y1, x2 - x1, y2 - y1);
    }
  });
  c.setLineDash([]);
}

/** A box moved in by half a line, so that its frame lies on the canvas. */
function inside(c, [x1, y1, x2, y2], thick) {
  const clip = (v, most) => Math.min(Math.max(v, thick), most - thick);
  const [w, h] = [c.canvas.width, c.canvas.height];
  return [clip(x1, w), clip(y1, h), clip(x2, w), clip(y2, h)];
}

function dot(c, { peak: [x, y], colour, absent }, scale, thick) {
  c.beginPath();
  c.arc(x * scale, y * scale, thick * 1.8, 0, 7);
  c.fillStyle = colour;
  if (!absent) c.fill();
  for (const [style, width] of absent ? [["black", 1], ["#bbb", 0.6]] : [["black", 0.5]]) {
    c.strokeStyle = style;
    c.lineWidth = thick * width;
    c.stroke();
  }
}

function aim(c, x, y, thick) {
  for (const [style, width] of [["black", thick * 1.6], ["white", thick * 0.7]]) {
    c.strokeStyle = style;
    c.lineWidth = width;
    c.beginPath();
    const r = thick * 6;
    c.moveTo(x - r, y); c.lineTo(x + r, y);
    c.moveTo(x, y - r); c.lineTo(x, y + r);
    c.stroke();
  }
}
