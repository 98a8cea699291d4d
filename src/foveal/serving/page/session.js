// What was answered in this session, a line for each model and way of augmenting.

import { settingName } from "./card.js";
import { isTooFew, wilson } from "./truth.js";
import { duration, make, share } from "./words.js";

function median(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Counts by setting, in the order in which the settings were first asked. `rows` are {answer, truth}. */
export function tally(rows) {
  const found = new Map();
  for (const { answer, truth } of rows) {
    const key = settingName(answer.model, answer.tta);
    if (!found.has(key)) found.set(key, { name: key, num: 0, numFailed: 0, numKnown: 0, numRight: 0, numGuessed: 0, seconds: [] });
    const line = found.get(key);
    if (answer.status !== "ok") {
      line.numFailed += 1;
      continue;
    }
    line.num += 1;
    line.seconds.push(answer.totalSeconds);
    if (!truth) continue;
    line.numKnown += 1;
    line.numGuessed += truth.from === "you" ? 0 : 1;
    line.numRight += answer.predicted === truth.name ? 1 : 0;
  }
  return [...found.values()];
}

function accuracyOf({ numKnown, numRight }) {
  if (!numKnown) return [make("span", { className: "muted" }, "no true class known")];
  const interval = wilson(numRight, numKnown);
  const [low, high] = interval.map(share);
  const data = { right: String(numRight), known: String(numKnown), low: String(interval[0]), high: String(interval[1]) };
  if (isTooFew(interval)) {
    return [make("span", { data }, `${numRight} of ${numKnown} right: too few to say (95\u202f% interval ${low} to ${high})`)];
  }
  return [
    make("b", { className: "figure", data }, share(numRight / numKnown)),
    make("span", { className: "bounds" }, ` [${low}, ${high}]`),
    make("span", { className: "muted" }, ` ${numRight} of ${numKnown} right`),
  ];
}

/** The summary: one line of figures for one setting, a table for several. */
export function showSummary(place, rows, currentName) {
  const lines = tally(rows);
  const numGuessed = Math.max(0, ...lines.map((line) => line.numGuessed));
  const notes = [];
  if (lines.some((line) => line.numKnown)) {
    const guessed = numGuessed ? `${numGuessed.toLocaleString("en")} true ${numGuessed === 1 ? "class" : "classes"} taken from names. ` : "";
    notes.push(make("p", { className: "hint" }, `${guessed}Accuracy with its 95\u202f% interval; it counts only if the model was not trained on these pictures.`));
  }
  const table = make("table", {},
    make("caption", { className: "unseen" }, "This session"),
    make("thead", {}, make("tr", {}, ...["Model", "Accuracy", "Pictures", "Median time"].map((title) => make("th", { scope: "col" }, title)))),
    make("tbody", {}, ...lines.map((line) => {
      const time = median(line.seconds);
      const failed = line.numFailed ? make("span", { className: "muted" }, `, ${line.numFailed} without an answer`) : null;
      return make("tr", { className: line.name === currentName ? "current" : "" },
        make("th", { scope: "row" }, make("bdi", {}, line.name)),
        make("td", { data: { title: "Accuracy" } }, ...accuracyOf(line)),
        make("td", { data: { title: "Pictures" } }, make("span", {}, String(line.num)), failed),
        make("td", { data: { title: "Median time" } }, time === null ? "–" : duration(time)));
    })));
  place.replaceChildren(table, ...notes);
}
