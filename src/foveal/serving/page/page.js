// The page of foveal serve: pictures in, answers out. Nothing is kept but the token, and that for this tab.

import { askAbout, askModels, keepToken, keptToken, Problem } from "./asking.js";
import { Card, settingName } from "./card.js";
import { fromDrop, fromInput, fromPaste } from "./intake.js";
import { smallCopy } from "./pictures.js";
import { Queue } from "./queue.js";
import { showSummary } from "./session.js";
import { showModel, showModels, showTtaWays } from "./settings.js";
import { sessionTable } from "./table.js";
import { guessTruth, indexClasses } from "./truth.js";
import { counted, make, mebibytes, percent } from "./words.js";

const NUM_AT_ONCE = 4;
const MAX_TRIES = 12;
const MAX_SLOW_TRIES = 3;
const MAX_PICTURES = 2000;
const FORM_BYTES = 512; // around the file, in the body of the request

const at = (id) => document.getElementById(id);
const state = { models: [], limits: {}, pictures: [], opacity: 55, numPasted: 0, indexes: new Map(), rest: null, isCancelled: false };
const queue = new Queue(work, NUM_AT_ONCE, showProgress);

const currentModel = () => state.models.find(({ name }) => name === at("model").value) ?? state.models[0];
const currentKey = () => settingName(currentModel()?.name ?? "", at("tta").value);

function truthOf(picture, modelName) {
  const index = state.indexes.get(modelName);
  if (!index) return null;
  if (picture.chosen !== undefined) return picture.chosen !== null && index.names.has(picture.chosen) ? { name: picture.chosen, from: "you" } : null;
  return at("guess").checked ? guessTruth(picture.path, index) : null;
}

// Asking

async function work(job, signal) {
  const { picture, model, tta, heatmap } = job;
  try {
    const given = await answerOf(job, signal);
    keepAnswer(job, {
      status: "ok", reason: "", predicted: given.predicted, probability: given.probability, heatmap: given.heatmap,
      names: model.class_names, probabilities: Float64Array.from(model.class_names, (name) => given.probabilities[name]),
      heatmapAsked: heatmap, heatmapReason: given.heatmap ? "" : given.heatmap_reason || (at("heatmaps").checked ? model.heatmap_reason : ""),
      seconds: given.seconds, totalSeconds: given.totalSeconds, roundTripSeconds: given.roundTripSeconds,
    });
    if (picture.copy === undefined) {
      smallCopy(picture.file, model.background).then((copy) => keepCopy(picture, copy));
    }
  } catch (problem) {
    if (problem.name === "AbortError") {
      cancelled(picture);
    } else if (problem instanceof Problem) {
      keepAnswer(job, { status: "failed", reason: problem.message, canRetry: problem.isPassing });
    } else {
      keepAnswer(job, { status: "failed", reason: `This page failed: ${problem.message}`, canRetry: true });
    }
  }
  refreshSummary();
}

/** Asks until there is an answer or no hope; a busy server is left alone for as long as it says. */
async function answerOf({ picture, model, tta, heatmap }, signal) {
  const limit = state.limits.max_upload_bytes;
  if (limit && picture.file.size + FORM_BYTES > limit) {
    throw new Problem("refused", `Too large: the file has ${mebibytes(picture.file.size)}, and this server takes ${mebibytes(limit)} at most.`);
  }
  for (let numTries = 1; ; numTries += 1) {
    await queue.clearance(signal);
    picture.card.showState("waiting", "Asking the model");
    try {
      return await askAbout(picture.file, { model: model.name, tta, heatmap, signal });
    } catch (problem) {
      if (problem.kind === "token") {
        picture.card.showState("waiting", "Waiting for the token");
        askForToken(problem.token);
      } else if (problem.kind === "busy" && numTries < (problem.code === "too-slow" ? MAX_SLOW_TRIES : MAX_TRIES)) {
        const seconds = problem.retryAfterSeconds * (1 + 0.3 * Math.random());
        picture.card.showState("waiting", `The server is busy; asking again in ${Math.ceil(seconds)}\u202fs`);
        queue.pauseFor(seconds);
      } else {
        throw problem;
      }
    }
  }
}

function keepAnswer({ picture, model, tta }, answer) {
  if (picture.isRemoved) return;
  Object.assign(answer, { model: model.name, tta, askedAt: new Date().toISOString() });
  const key = settingName(model.name, tta);
  picture.answers.delete(key); // so that the newest comes last
  picture.answers.set(key, answer);
  picture.current = key;
  showCard(picture);
}

function cancelled(picture) {
  if (picture.isRemoved) return;
  if (picture.answers.has(picture.current)) showCard(picture);
  else picture.card.showFailure("Cancelled", { canRetry: true, state: "cancelled" });
}

function keepCopy(picture, copy) {
  if (picture.isRemoved) {
    if (copy) URL.revokeObjectURL(copy.url);
    return;
  }
  picture.copy = copy;
  picture.card.showPicture();
}

function ask(pictures) {
  const model = currentModel();
  if (!model) return;
  const tta = at("tta").value;
  const heatmap = model.heatmap && at("heatmaps").checked;
  for (const picture of pictures) picture.card.showState("waiting", "Waiting for its turn");
  queue.add(pictures.map((picture) => ({ picture, model, tta, heatmap })));
}

// Pictures

function take({ entries, numLeftOut = 0 }) {
  const room = MAX_PICTURES - state.pictures.length;
  const taken = entries.slice(0, Math.max(0, room));
  const notes = [];
  if (numLeftOut) notes.push(`${counted(numLeftOut, "file")} left out: no pictures by their names.`);
  if (entries.length > taken.length) {
    notes.push(`${counted(entries.length - taken.length, "picture")} left out: this page holds ${MAX_PICTURES.toLocaleString("en")}. For more, use foveal predict.`);
  }
  if (!entries.length && !numLeftOut) notes.push("Nothing came that could be a picture. Drop files, not links to them.");
  notice(notes.join(" "));
  if (!taken.length) return;
  const made = taken.map(({ file, path }) => {
    const picture = { file, path, answers: new Map(), current: "", copy: undefined, chosen: undefined, isRemoved: false };
    picture.card = new Card(picture, {
      remove: () => remove(picture),
      retry: () => ask([picture]),
      choose: (name) => { picture.chosen = name; showTruth(picture); refreshSummary(); },
    });
    return picture;
  });
  state.pictures.unshift(...made);
  at("cards").prepend(...made.map(({ card }) => card.element));
  if (state.models.length) ask(made);
  else queue.close();
  if (!state.models.length) state.rest = [...(state.rest ?? []), ...made];
  refreshSummary();
  const box = made[0].card.element.getBoundingClientRect();
  if (box.top > 0.8 * innerHeight) at("results").scrollIntoView({ block: "start" });
}

function remove(picture) {
  const cards = [...at("cards").children];
  const place = cards.indexOf(picture.card.element);
  discard(picture);
  const next = cards[place + 1] ?? cards[place - 1];
  (next?.querySelector(".remove") ?? at("choose")).focus();
  say(`${picture.path} removed`);
  refreshSummary();
}

function discard(picture) {
  picture.isRemoved = true;
  queue.stop((job) => job.picture === picture);
  if (picture.copy) URL.revokeObjectURL(picture.copy.url);
  picture.card.element.remove();
  state.pictures = state.pictures.filter((each) => each !== picture);
}

function showCard(picture) {
  const answer = picture.answers.get(picture.current);
  const others = [...picture.answers].filter(([key]) => key !== picture.current).map(([, other]) => other);
  if (answer.status !== "ok") {
    picture.card.showFailure(answer.reason, { canRetry: answer.canRetry, others });
    return;
  }
  const model = state.models.find(({ name }) => name === answer.model);
  picture.card.showAnswer(answer, model, truthOf(picture, answer.model), others, {
    severalSettings: state.models.length > 1 || answer.tta !== "none",
    opacity: state.opacity,
    onOpacity: (value) => { state.opacity = value; },
  });
}

function showTruth(picture) {
  const answer = picture.answers.get(picture.current);
  if (answer?.status === "ok") picture.card.showTruth(truthOf(picture, answer.model));
}

// What the page says

function notice(words) {
  at("notice").textContent = words;
  at("notice").hidden = !words;
}

function say(words) {
  at("status").textContent = words;
}

function showProgress() {
  const { numLeft, numDone } = queue;
  const wasBusy = !at("progress-box").hidden;
  const hadFocus = document.activeElement === at("cancel");
  at("progress-box").hidden = numLeft === 0;
  at("progress").max = numLeft + numDone;
  at("progress").value = numDone;
  at("progress-label").textContent = `${numDone} of ${counted(numLeft + numDone, "picture")}`;
  refreshSummary();
  if (!wasBusy || numLeft) return;
  if (hadFocus) at("results").focus({ preventScroll: true });
  if (state.isCancelled) {
    state.isCancelled = false;
    say("Cancelled.");
    return;
  }
  if (!numDone) return;
  const failed = state.pictures.filter((picture) => picture.answers.get(picture.current)?.status === "failed").length;
  const newest = state.pictures[0]?.answers.get(state.pictures[0].current);
  if (numDone === 1 && newest?.status === "ok") say(`${state.pictures[0].path}: ${newest.predicted}, ${percent(newest.probability)}`);
  else if (numDone === 1 && newest) say(`${state.pictures[0].path}: ${newest.reason}`);
  else say(`${counted(numDone, "picture")} done${failed ? `, ${failed} without an answer` : ""}.`);
}

let isDue = false;

/** Once a frame at most: each of hundreds of answers would have the table made anew. */
function refreshSummary() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    const rows = answered();
    document.body.classList.toggle("has-pictures", state.pictures.length > 0);
    at("empty").hidden = state.pictures.length > 0;
    at("session").hidden = !rows.length;
    showSummary(at("summary"), rows, currentKey());
    showAgain();
    filterCards();
  });
}

function answered() {
  return [...state.pictures].reverse().flatMap((picture) =>
    [...picture.answers.values()].map((answer) => ({ picture, answer, truth: truthOf(picture, answer.model) })));
}

function showAgain() {
  const key = currentKey();
  const due = state.pictures.filter((picture) => picture.current && picture.current !== key);
  const hadFocus = document.activeElement === at("again");
  at("again").hidden = !due.length || queue.numLeft > 0;
  if (hadFocus && at("again").hidden) at("results").focus({ preventScroll: true });
  at("again").replaceChildren("Ask ", make("bdi", {}, key), ` about ${due.length === 1 ? "the picture" : `all ${due.length} pictures`}`);
}

function filterCards() {
  const wanted = at("show").value;
  let numShown = 0;
  for (const { card } of state.pictures) {
    const { state: now, right } = card.element.dataset;
    const isMeant = { all: true, wrong: right === "false" && now === "done", unknown: now === "done" && !right, failed: now === "failed" || now === "cancelled" }[wanted];
    card.element.hidden = !isMeant;
    numShown += isMeant ? 1 : 0;
  }
  at("nothing-shown").hidden = numShown > 0 || !state.pictures.length;
}

// The server

/** A token was refused. Several questions may have gone out with it; by now there may be a better one. */
function askForToken(refused) {
  if (refused !== keptToken()) return;
  queue.close();
  if (!at("token-form").hidden) return;
  at("token-title").textContent = refused ? "The server does not take this token" : "This server asks for a token";
  keepToken("");
  at("token").value = "";
  at("token-form").hidden = false;
  at("token").focus();
}

async function start() {
  for (;;) {
    try {
      const { models, limits } = await askModels();
      Object.assign(state, { models, limits });
      break;
    } catch (problem) {
      if (problem.kind === "token") {
        askForToken(problem.token);
        await new Promise((resolve) => { at("token-form").addEventListener("submit", resolve, { once: true }); });
        continue;
      }
      const wait = problem.kind === "busy" ? problem.retryAfterSeconds : 5;
      notice(`${problem.message} Trying again in ${Math.ceil(wait)}\u202fs.`);
      await new Promise((resolve) => { setTimeout(resolve, 1000 * wait); });
    }
  }
  notice("");
  state.models.forEach((model) => state.indexes.set(model.name, indexClasses(model.class_names)));
  showModels(state.models);
  modelChanged();
  queue.open();
  if (state.rest) ask(state.rest.filter((picture) => !picture.isRemoved));
  state.rest = null;
}

function modelChanged() {
  const model = currentModel();
  showTtaWays(model, at("tta").value);
  showModel(model);
  refreshSummary();
}

// Controls

for (const [button, input] of [["choose", "files"], ["photograph", "camera"], ["choose-folder", "folder"]]) {
  at(button).addEventListener("click", () => at(input).click());
  at(input).addEventListener("change", () => take(fromInput(at(input))));
}
document.addEventListener("paste", (event) => {
  const entries = fromPaste(event.clipboardData, () => (state.numPasted += 1));
  if (!entries.length) return;
  event.preventDefault();
  take({ entries });
});
// Everywhere, or a picture that misses the field would replace the page.
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.toggle("dragging", hasFiles(event));
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  try {
    take(await fromDrop(event.dataTransfer));
  } catch (error) {
    notice(`What was dropped could not be read: ${error.message}`);
  }
});
at("model").addEventListener("change", modelChanged);
at("tta").addEventListener("change", refreshSummary);
at("again").addEventListener("click", () => ask(state.pictures.filter((picture) => picture.current !== currentKey())));
at("guess").addEventListener("change", () => { state.pictures.forEach(showTruth); refreshSummary(); });
at("show").addEventListener("change", filterCards);
at("cancel").addEventListener("click", () => {
  state.isCancelled = true;
  queue.stop().forEach(({ picture }) => cancelled(picture));
  at("choose").focus();
});
at("clear").addEventListener("click", () => {
  [...state.pictures].forEach(discard);
  notice("");
  say("All pictures removed");
  refreshSummary();
  at("choose").focus();
});
at("download").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([sessionTable(answered())], { type: "text/csv;charset=utf-8" }));
  make("a", { href: url, download: "predictions.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
});
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(at("token").value.trim());
  at("token-form").hidden = true;
  (state.pictures.length ? at("results") : at("choose")).focus({ preventScroll: true });
  if (state.models.length) queue.open();
});
// On a phone the answers matter more than the settings.
if (matchMedia("(max-width: 48rem)").matches) at("settings-fold").open = false;
start();
