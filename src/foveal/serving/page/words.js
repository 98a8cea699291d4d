// How numbers and counts are said, everywhere on the page.

const THIN = "\u202f";

/** A probability as a percentage that never rounds to a certainty. */
export function percent(probability) {
  if (probability >= 0.9995) return `>${THIN}99.9${THIN}%`;
  if (probability < 0.0005) return `<${THIN}0.1${THIN}%`;
  return `${(100 * probability).toFixed(1)}${THIN}%`;
}

/** A duration given in seconds. */
export function duration(seconds) {
  if (seconds < 0.00095) return `<${THIN}1${THIN}ms`;
  if (seconds < 0.0995) return `${(1000 * seconds).toPrecision(2).replace(/\.0$/, "")}${THIN}ms`;
  if (seconds < 0.9995) return `${Math.round(1000 * seconds)}${THIN}ms`;
  return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)}${THIN}s`;
}

/** "1 picture", "1,200 pictures". */
export function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** "20 MB", in powers of 1024 as the server counts its limit. */
export function mebibytes(bytes) {
  const size = bytes / 1048576;
  return `${size < 10 ? size.toFixed(1) : Math.round(size)}${THIN}MiB`;
}

/** A share from 0 to 1 with two digits, as the reports have it. */
export function share(value) {
  return value.toFixed(2);
}

/** An element with properties, data and attributes, and children that are elements or text; markup is never read. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "data") Object.assign(element.dataset, value);
    else if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
