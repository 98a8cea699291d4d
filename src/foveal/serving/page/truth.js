// What a picture truly shows, as its name says it, and how far the answers agree.

const Z = 1.959963984540054; // the 97.5 % point of the normal distribution
const TOO_WIDE = 0.3;

/** The words of a name, in lower case: "Golden_Retriever-2" gives golden, retriever, 2. */
function tokens(text) {
  return text.normalize("NFC").toLocaleLowerCase("en").split(/[^\p{L}\p{M}\p{N}]+/u).filter(Boolean);
}

function contains(words, wanted) {
  return words.some((_, at) => wanted.every((word, offset) => words[at + offset] === word));
}

/** Classes by their words, longest first; made once a model. */
export function indexClasses(classNames) {
  const known = classNames.map((name) => ({ name, words: tokens(name) })).filter(({ words }) => words.length);
  return { names: new Set(classNames), known: known.sort((a, b) => b.words.length - a.words.length) };
}

/**
 * The true class as the path has it: the nearest folder that is named as a class, or the one class in the file name.
 * Numbers and single letters are no sign of a class in a file name, which often counts, but where they come first of
 * several words and no date follows. Gives {name, from} or null.
 */
export function guessTruth(path, index) {
  const parts = path.split("/").filter(Boolean);
  const file = (parts.pop() ?? "").replace(/\.[^.]*$/, "");
  for (const folder of parts.reverse()) {
    if (index.names.has(folder)) return { name: folder, from: "folder" };
    const words = tokens(folder).join(" ");
    const same = index.known.filter((each) => each.words.join(" ") === words);
    if (same.length === 1) return { name: same[0].name, from: "folder" };
  }
  const words = tokens(file);
  const isDate = words.length > 2 && words.slice(0, 3).every((word) => /^\p{N}+$/u.test(word));
  let found = index.known.filter(({ words: wanted }) => {
    const isWeak = wanted.length === 1 && (/^\p{N}+$/u.test(wanted[0]) || [...wanted[0]].length === 1);
    return isWeak ? words.length > 1 && words[0] === wanted[0] && !isDate : contains(words, wanted);
  });
  // "crab apple" is no apple: a class inside another that was found as well does not count.
  found = found.filter((one) => !found.some((other) => other.words.length > one.words.length && contains(other.words, one.words)));
  return found.length === 1 ? { name: found[0].name, from: "file name" } : null;
}

/** The 95 % score interval of a proportion (Wilson 1927). */
export function wilson(numRight, num) {
  const value = numRight / num;
  const shrink = 1 + Z ** 2 / num;
  const centre = value + Z ** 2 / (2 * num);
  const half = Z * Math.sqrt((value * (1 - value)) / num + Z ** 2 / (4 * num ** 2));
  return [numRight === 0 ? 0 : (centre - half) / shrink, numRight === num ? 1 : (centre + half) / shrink];
}

/** Whether the interval is so wide that the accuracy says next to nothing. */
export function isTooFew([low, high]) {
  return high - low > TOO_WIDE;
}
