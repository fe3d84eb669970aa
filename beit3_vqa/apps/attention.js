// Draws where a model looked over a picture, for the report and for serve's page: a plain script, which both can take.

// From clear over yellow to red: where nothing was looked at, the picture stays as it is.
const HEAT = [[255, 236, 120], [250, 170, 40], [236, 70, 40], [190, 0, 90]];

function heat(share) {
  const at = Math.min(0.9999, Math.max(0, share)) * (HEAT.length - 1), low = Math.floor(at), part = at - low;
  return [...HEAT[low].map((value, channel) => value + part * (HEAT[low + 1][channel] - value)), 235 * share ** 0.6];
}

// canvas: stands in a box of the picture's size; share(row, column): of the brightest patch, 0 to 1; region: left, top,
// right and bottom of what the model saw, as shares of the sides. Between the middles of patches, shares are blended.
function drawAttention(canvas, rows, columns, share, region) {
  const fine = Math.ceil(200 / Math.max(columns, rows));
  canvas.width = fine * columns;
  canvas.height = fine * rows;
  const pixels = new ImageData(canvas.width, canvas.height);
  for (let place = 0; place < canvas.width * canvas.height; place++) {
    const column = Math.min(columns - 1, Math.max(0, ((place % canvas.width) + 0.5) / fine - 0.5));
    const row = Math.min(rows - 1, Math.max(0, (Math.floor(place / canvas.width) + 0.5) / fine - 0.5));
    const left = Math.floor(column), top = Math.floor(row), right = Math.min(left + 1, columns - 1), bottom = Math.min(top + 1, rows - 1);
    const upper = share(top, left) + (column - left) * (share(top, right) - share(top, left));
    const lower = share(bottom, left) + (column - left) * (share(bottom, right) - share(bottom, left));
    pixels.data.set(heat(upper + (row - top) * (lower - upper)), 4 * place);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  const [left, top, right, bottom] = region;
  const box = { left, top, width: right - left, height: bottom - top };
  for (const [side, part] of Object.entries(box)) canvas.style[side] = `${100 * part}%`;
}
