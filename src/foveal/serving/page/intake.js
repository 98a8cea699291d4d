// Pictures come in: chosen, photographed, pasted, or dropped as files and folders.

const PICTURE_NAME = /\.(jpe?g|jfif|png|webp|bmp|dib|tiff?|gif)$/i;

/** A file with the path that it has inside what was given; the folder's name may be the true class. */
function entryOf(file, path) {
  return { file, path: path.replace(/^\/+/, "") };
}

/** Files of an input. Out of a folder only what looks like a picture: nobody means its .DS_Store. */
export function fromInput(input) {
  const files = [...input.files];
  const wanted = input.webkitdirectory ? files.filter((file) => looksLikePicture(file)) : files;
  const entries = wanted.map((file) => entryOf(file, file.webkitRelativePath || file.name));
  input.value = "";
  return { entries: sorted(entries), numLeftOut: files.length - wanted.length };
}

/** Pictures of the clipboard. Those without a file of their own are all called image.png there. */
export function fromPaste(clipboard, numbered) {
  const files = [...(clipboard?.files ?? [])];
  return files.map((file) => {
    if (file.name !== "image.png") return entryOf(file, file.name);
    const name = `pasted ${numbered()}.png`;
    return entryOf(new File([file], name, { type: file.type }), name);
  });
}

/** What was dropped, folders walked through. Must be called in the event itself: the browser forgets it afterwards. */
export async function fromDrop(transfer) {
  const handles = [...(transfer.items ?? [])].map((item) => item.webkitGetAsEntry?.() ?? null);
  const plain = [...transfer.files];
  const found = [];
  let numLeftOut = 0;
  if (!handles.some((handle) => handle?.isDirectory)) {
    return { entries: plain.map((file) => entryOf(file, file.name)), numLeftOut };
  }
  const walk = async (handle) => {
    if (handle.isFile) {
      // A file that may not be read, or is gone meanwhile, is left out as what is no picture.
      const file = await new Promise((resolve) => { handle.file(resolve, () => resolve(null)); });
      if (file && looksLikePicture(file)) found.push(entryOf(file, handle.fullPath));
      else numLeftOut += 1;
      return;
    }
    const reader = handle.createReader();
    for (;;) {
      // A browser hands out a hundred at a time.
      const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
      if (!some.length) return;
      for (const each of some) await walk(each);
    }
  };
  for (const handle of handles) if (handle) await walk(handle);
  return { entries: sorted(found), numLeftOut };
}

function looksLikePicture(file) {
  return !file.name.startsWith(".") && (PICTURE_NAME.test(file.name) || file.type.startsWith("image/"));
}

function sorted(entries) {
  const order = new Intl.Collator("en", { numeric: true });
  return entries.sort((a, b) => order.compare(a.path, b.path));
}
