// Small copies of the pictures: hundreds of photographs at their own size would fill the memory.

const MAX_SIDE_PX = 448;

let turn = Promise.resolve();

/**
 * A small upright copy, {url, width, height} with the picture's own size; null where this browser cannot show the
 * format. One at a time, and only after the server has accepted the picture: a few kilobytes may unpack to gigabytes.
 */
export function smallCopy(file, background) {
  turn = turn.then(() => shrink(file, background)).catch(() => null);
  return turn;
}

async function shrink(file, background) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return null;
  }
  try {
    const { width, height } = bitmap;
    const scale = Math.min(1, MAX_SIDE_PX / Math.max(width, height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    // What is transparent has the colour that the model sees there.
    context.fillStyle = `rgb(${(background ?? [255, 255, 255]).join(" ")})`;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const isTiny = Math.max(width, height) < 100;
    const blob = await new Promise((resolve) => { canvas.toBlob(resolve, isTiny ? "image/png" : "image/webp", 0.85); });
    return blob ? { url: URL.createObjectURL(blob), width, height, isTiny } : null;
  } finally {
    bitmap.close();
  }
}
