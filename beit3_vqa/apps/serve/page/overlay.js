// Draws where a model looked over the part of the image that it saw.

// Dark for what drew little attention, bright for what drew most: the stops of matplotlib's "inferno".
const RAMP = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

function colour(value) {
  const place = Math.min(Math.max(value, 0), 1) * (RAMP.length - 1);
  const below = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[below].map((low, channel) => low + (RAMP[below + 1][channel] - low) * (place - below));
}

// canvas: stands in a box of the image's size; look: { region, patches } as /api/answer says it.
export function drawLook(canvas, look) {
  const rows = look.patches.length;
  const columns = look.patches[0].length;
  const all = look.patches.flat();
  const lowest = Math.min(...all);
  const spread = Math.max(...all) - lowest || 1;
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  all.forEach((value, index) => pixels.data.set([...colour((value - lowest) / spread), 255], 4 * index));
  context.putImageData(pixels, 0, 0);
  const [left, top, right, bottom] = look.region;
  const place = { left, top, width: right - left, height: bottom - top };
  for (const [side, share] of Object.entries(place)) canvas.style[side] = `${100 * share}%`;
}
