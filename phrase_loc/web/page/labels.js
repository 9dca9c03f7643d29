// Names of boxes on the canvas, placed so that they do not cover each other.

/** Draw the label of each layer at its first box, at its others their numbers.
 *
 * @param scale canvas pixels for one pixel of the photograph
 * @param thick width of a frame in canvas pixels
 * @param only place of the one box that is drawn, from 0; undefined for all
 */
export function drawLabels(c, layers, scale, thick, only) {
  const size = thick * 5.2, tall = size * 1.4;
  c.font = `600 ${size}px system-ui, sans-serif`;
  c.textBaseline = "middle";
  const taken = [];
  const write = (colour, text, xyxy) => {
    const wide = c.measureText(text).width + size * 0.8;
    const [x, y] = place(xyxy.map((v) => v * scale), wide, tall, taken, c.canvas);
    taken.push([x, y, x + wide, y + tall]);
    c.fillStyle = colour;
    c.fillRect(x, y, wide, tall);
    c.fillStyle = dark(colour) ? "white" : "black";
    c.fillText(text, x + size * 0.4, y + tall * 0.53);
  };
  for (const { boxes = [], colour, label } of layers) {
    if (label && boxes.length && !only) write(colour, boxes.length > 1 ? `${label} 1` : label, boxes[0].xyxy);
  }
  for (const { boxes = [], colour, label } of layers) for (const [rank, { xyxy }] of boxes.entries()) {
    if (label && rank && (only ?? rank) === rank) write(colour, only ? `${label} ${rank + 1}` : `${rank + 1}`, xyxy);
  }
}

/** The first free place: above the box, within its upper edge, below it, then down along its left side. */
function place([x1, y1, x2, y2], wide, tall, taken, { width, height }) {
  const into = (v, most) => Math.min(Math.max(v, 0), Math.max(0, most));
  const rows = [y1 - tall, y1, y2, y2 - tall];
  for (let y = y1 + tall; y < y2; y += tall / 2) rows.push(y);
  for (let y = y1 - 1.5 * tall; y > 0; y -= tall / 2) rows.push(y);
  const spots = rows.flatMap((y) => [[x1, y], [x2 - wide, y]])
    .filter(([, y]) => y >= 0 && y + tall <= height)
    .map(([x, y]) => [into(x, width - wide), y]);
  const free = ([x, y]) => taken.every(([a, b, c, d]) => x >= c || x + wide <= a || y >= d || y + tall <= b);
  return spots.find(free) ?? [into(x1, width - wide), into(y1, height - tall)];
}

function dark(colour) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  return 0.3 * r + 0.59 * g + 0.11 * b < 110;
}
