// The heatmap's colours, and where on the picture the model's square lies.

const SIDE_PX = 112;

// Inferno (Smith and van der Walt 2015, CC0): even steps look even, also without colour vision and in grey.
const INFERNO = [
  [0, 0, 4], [11, 7, 36], [33, 12, 74], [61, 9, 101], [87, 16, 110], [113, 25, 110], [138, 34, 106], [163, 44, 97],
  [188, 55, 84], [210, 70, 68], [228, 90, 49], [241, 115, 29], [249, 142, 9], [252, 172, 17], [249, 203, 53],
  [242, 234, 105], [252, 255, 164],
];
const COLOURS = Array.from({ length: 256 }, (_, at) => {
  const place = (at / 255) * (INFERNO.length - 1);
  const low = Math.min(Math.floor(place), INFERNO.length - 2);
  const between = [0, 1, 2].map((channel) => INFERNO[low][channel] * (1 + low - place) + INFERNO[low + 1][channel] * (place - low));
  return [...between, 255];
});

/** Draw a map of values 0..1, rows of columns, over the whole canvas; bilinear between the middles of its cells. */
export function drawHeatmap(canvas, values) {
  canvas.width = canvas.height = SIDE_PX;
  const rows = values.length;
  const columns = values[0].length;
  const context = canvas.getContext("2d");
  const image = context.createImageData(SIDE_PX, SIDE_PX);
  const steps = (cells) =>
    Array.from({ length: SIDE_PX }, (_, at) => {
      const place = Math.min(cells - 1, Math.max(0, ((at + 0.5) * cells) / SIDE_PX - 0.5));
      const low = Math.min(Math.floor(place), Math.max(0, cells - 2));
      return [low, Math.min(low + 1, cells - 1), place - low];
    });
  const across = steps(columns);
  steps(rows).forEach(([top, bottom, down], y) => {
    across.forEach(([left, right, along], x) => {
      const upper = values[top][left] * (1 - along) + values[top][right] * along;
      const lower = values[bottom][left] * (1 - along) + values[bottom][right] * along;
      const value = Math.min(1, Math.max(0, upper * (1 - down) + lower * down));
      image.data.set(COLOURS[Math.round(255 * value)], 4 * (y * SIDE_PX + x));
    });
  });
  context.putImageData(image, 0, 0);
}

/** Where the map is strongest, in words. */
export function strongestPlace(values) {
  let best = [0, 0];
  values.forEach((row, y) => row.forEach((value, x) => { if (value > values[best[0]][best[1]]) best = [y, x]; }));
  const third = (at, cells) => Math.min(2, Math.floor(((at + 0.5) / cells) * 3));
  const down = ["upper", "", "lower"][third(best[0], values.length)];
  const across = ["left", "", "right"][third(best[1], values[0].length)];
  return [down, across].filter(Boolean).join(" ") || "middle";
}

/**
 * The square that the model saw, in shares of the upright picture's width and height; it may stick out where the
 * picture was padded. Null where the server does not say how pictures become square.
 */
export function seenBox(width, height, model) {
  if (model.fit === "squash") return { left: 0, top: 0, width: 1, height: 1 };
  let side;
  if (model.fit === "pad") side = Math.max(width, height);
  else if (model.fit === "crop" && model.store_px) side = (Math.min(width, height) * model.size_px) / model.store_px;
  else return null;
  return { left: (1 - side / width) / 2, top: (1 - side / height) / 2, width: side / width, height: side / height };
}

/** Whether some of the picture was cut away before the model looked. */
export function isCut(box) {
  return box !== null && (box.width < 0.999 || box.height < 0.999);
}

