// One picture and what was answered about it.

import { drawHeatmap, isCut, seenBox, strongestPlace } from "./heatmap.js";
import { duration, make, percent } from "./words.js";

const NUM_OPEN_BARS = 5;
const NUM_MORE_BARS = 100;
const MAX_OPTIONS = 30;
const COARSE_PLACES = 16;

let numCards = 0;

/** The card of a picture. `act` has remove(), retry() and choose(className or null), for what its controls do. */
export class Card {
  #act;
  #picture;
  #model = null;
  #opacity = null;

  constructor(picture, act) {
    this.#act = act;
    this.#picture = picture;
    const id = `card-${(numCards += 1)}`;
    this.id = id;
    this.stage = make("div", { className: "stage" });
    this.caption = make("figcaption");
    this.body = make("div", { className: "body" });
    this.truth = make("div", { className: "truth", hidden: true });
    this.removeButton = make("button", {
      type: "button", className: "remove", "aria-label": `Remove ${picture.path}`, title: "Remove", on: { click: () => act.remove() },
    }, "×");
    const article = make("article", { className: "card", "aria-labelledby": id, tabindex: "-1" },
      make("figure", {}, this.stage, this.caption),
      make("div", { className: "said" },
        make("header", {}, make("h3", { id, title: picture.path }, make("bdi", {}, picture.path)), this.removeButton),
        this.body, this.truth));
    this.element = make("li", { data: { path: picture.path } }, article);
    this.article = article;
    this.showState("waiting", "Waiting for its turn");
  }

  /** No answer yet: waiting, asking, or asked again after a while. */
  showState(state, words) {
    this.element.dataset.state = state;
    this.article.setAttribute("aria-busy", String(state === "waiting"));
    if (!this.stage.firstChild) this.#showNoPicture("");
    this.body.replaceChildren(make("p", { className: "state" }, words));
  }

  /** It could not be answered: why, and a way to try again. */
  showFailure(words, { canRetry, state = "failed", others = [] } = {}) {
    this.showState(state, words);
    this.body.firstChild.className = state === "failed" ? "state problem" : "state";
    this.truth.hidden = true;
    this.caption.replaceChildren();
    if (!this.#picture.copy) this.#showNoPicture(state === "failed" ? "no picture" : "");
    this.#removeMap();
    // The button goes with its click, and who works by keyboard stays with the card.
    const retry = () => { this.article.focus({ preventScroll: true }); this.#act.retry(); };
    if (canRetry) this.body.append(make("button", { type: "button", on: { click: retry } }, "Try again"));
    if (others.length) this.body.append(earlier(others));
  }

  /** An answer, the model that gave it, the true class or null, and the answers of other settings. */
  showAnswer(answer, model, truth, others, { severalSettings, opacity, onOpacity }) {
    this.#model = model;
    this.#opacity = { value: opacity, changed: onOpacity };
    Object.assign(this.element.dataset, { state: "done", predicted: answer.predicted, probability: String(answer.probability), model: answer.model, tta: answer.tta });
    this.article.setAttribute("aria-busy", "false");
    this.answer = answer;
    this.verdict = make("p", { className: "verdict", hidden: true });
    this.body.replaceChildren(
      make("p", { className: "predicted" },
        make("strong", { title: answer.predicted }, make("bdi", {}, answer.predicted)), " ", make("span", {}, percent(answer.probability))),
      this.verdict, ...this.#bars(answer), this.#times(answer, severalSettings));
    if (others.length) this.body.append(earlier(others));
    this.#fillTruth(model);
    this.showTruth(truth);
    this.#drawPicture();
  }

  /** Right or wrong, as far as the true class is known. */
  showTruth(truth) {
    this.truth.hidden = false;
    const isRight = truth?.name === this.answer.predicted;
    this.element.dataset.right = truth ? String(isRight) : "";
    this.verdict.hidden = !truth;
    this.verdict.dataset.right = String(isRight);
    this.verdict.replaceChildren(
      make("b", {}, isRight ? "Right" : "Wrong"),
      ...(isRight ? [] : [": it is ", make("bdi", {}, truth?.name ?? "")]));
    this.truthFrom.textContent = truth && truth.from !== "you" ? `from the ${truth.from}` : "";
    if (document.activeElement !== this.truthField) this.truthField.value = truth?.name ?? "";
  }

  /** The small copy has come, or cannot be had. */
  showPicture() {
    if (this.element.dataset.state === "done") this.#drawPicture();
  }

  #showNoPicture(words) {
    this.stage.replaceChildren(make("div", { className: "no-picture" }, words));
  }

  #removeMap() {
    this.stage.querySelector(".seen")?.remove();
  }

  #drawPicture() {
    const { copy } = this.#picture;
    if (copy === undefined) return; // still being made
    const { answer } = this;
    const [width, height] = copy ? [copy.width, copy.height] : [1, 1];
    const longer = Math.max(width, height);
    const frame = make("div", { className: "frame" }, copy
      ? make("img", { src: copy.url, alt: this.#picture.path, className: copy.isTiny ? "tiny" : "", draggable: false })
      : make("div", { className: "no-picture" }, answer.heatmap ? "" : "no picture"));
    frame.style.width = `${(100 * width) / longer}%`;
    frame.style.height = `${(100 * height) / longer}%`;
    const known = copy ? seenBox(width, height, this.#model) : { left: 0, top: 0, width: 1, height: 1 };
    const box = known ?? { left: 0, top: 0, width: 1, height: 1 };
    const seen = make("div", { className: "seen" });
    for (const side of ["left", "top", "width", "height"]) seen.style[side] = `${100 * box[side]}%`;
    if (isCut(known)) seen.dataset.cut = "true";
    frame.append(seen);
    this.stage.replaceChildren(frame);
    this.#captionFor(answer, seen, isCut(known), known === null);
  }

  #captionFor(answer, seen, cut, isRough) {
    const parts = this.#picture.copy ? [] : [make("p", {}, "The model could read this format; your browser cannot show it.")];
    if (answer.heatmap) {
      const { values } = answer.heatmap;
      const label = `Heatmap for ${answer.heatmap.class ?? answer.predicted}: strongest in the ${strongestPlace(values)} of what the model saw`;
      const canvas = make("canvas", { className: "heatmap", role: "img", "aria-label": label });
      drawHeatmap(canvas, values);
      canvas.style.opacity = String(this.#opacity.value / 100);
      seen.append(canvas);
      parts.push(this.#slider(canvas), make("div", { className: "legend", "aria-hidden": "true" }, make("span", {}, "little"), make("i"), make("span", {}, "much")));
      if (values.length * values[0].length <= COARSE_PLACES) parts.push(make("p", {}, `Coarse: the network tells ${values[0].length} × ${values.length} places apart.`));
      if (answer.tta !== "none") parts.push(make("p", {}, "Of the plain look."));
      if (isRough) parts.push(make("p", {}, "Placed roughly: the server does not say what it cuts away."));
    } else if (answer.heatmapAsked || answer.heatmapReason) {
      parts.push(make("p", { className: "no-heatmap" }, answer.heatmapReason ? `No heatmap: ${answer.heatmapReason}.` : "No heatmap came with this answer."));
    }
    if (cut) parts.push(make("p", {}, "Outside the frame: not seen by the model."));
    this.caption.replaceChildren(...parts);
  }

  #slider(canvas) {
    const id = `${this.id}-opacity`;
    const slider = make("input", { type: "range", id, min: 0, max: 100, step: 5, value: this.#opacity.value });
    const say = () => slider.setAttribute("aria-valuetext", `${slider.value} percent`);
    say();
    slider.addEventListener("input", () => {
      canvas.style.opacity = String(slider.value / 100);
      say();
      this.#opacity.value = Number(slider.value);
      this.#opacity.changed(Number(slider.value));
    });
    return make("div", { className: "opacity" }, make("label", { htmlFor: id }, "Heatmap", make("span", { className: "unseen" }, " opacity")), slider);
  }

  #bars(answer) {
    const sorted = answer.names.map((name, number) => ({ name, probability: answer.probabilities[number] }));
    sorted.sort((a, b) => b.probability - a.probability);
    const numOpen = sorted.length <= NUM_OPEN_BARS + 1 ? sorted.length : NUM_OPEN_BARS;
    const list = make("ol", { className: "bars", "aria-label": "Probabilities" }, ...sorted.slice(0, numOpen).map((each) => bar(each, answer.predicted)));
    const rest = sorted.slice(numOpen);
    if (!rest.length) return [list];
    const together = rest.reduce((sum, { probability }) => sum + probability, 0);
    const folded = make("ol", { className: "bars", start: numOpen + 1, tabIndex: 0, "aria-label": "Further probabilities" });
    const more = make("button", { type: "button", hidden: true, on: { click: () => unfold() } });
    const unfold = () => {
      const at = folded.childElementCount;
      folded.append(...rest.slice(at, at + NUM_MORE_BARS).map((each) => bar(each, answer.predicted)));
      const numLeft = rest.length - folded.childElementCount;
      more.hidden = numLeft === 0;
      more.textContent = `Show ${Math.min(numLeft, NUM_MORE_BARS)} more of ${numLeft.toLocaleString("en")}`;
    };
    const details = make("details", {}, make("summary", {}, `${rest.length.toLocaleString("en")} more, together ${percent(together)}`), folded, more);
    details.addEventListener("toggle", () => { if (details.open && !folded.childElementCount) unfold(); });
    return [list, details];
  }

  #times({ seconds, totalSeconds, roundTripSeconds, model, tta }, severalSettings) {
    const parts = [["decode", seconds?.decode], ["queue", seconds?.queue], ["compute", seconds?.compute]];
    const said = parts.filter(([, value]) => Number.isFinite(value)).map(([name, value]) => `${name} ${duration(value)}`).join(", ");
    const by = severalSettings ? make("span", {}, make("bdi", {}, settingName(model, tta)), " in ") : null;
    return make("p", { className: "times", title: `${duration(roundTripSeconds)} with the way there and back` }, by,
      make("b", {}, duration(Number.isFinite(totalSeconds) ? totalSeconds : roundTripSeconds)), said ? `: ${said}` : "");
  }

  #fillTruth(model) {
    if (this.truthModel === model) return;
    this.truthModel = model;
    const id = `${this.id}-truth`;
    const choose = (value) => this.#act.choose(value || null);
    if (model.class_names.length <= MAX_OPTIONS) {
      this.truthField = make("select", { id, on: { change: (event) => choose(event.target.value) } },
        make("option", { value: "" }, "not known"), ...model.class_names.map((name) => make("option", { value: name }, name)));
    } else {
      this.truthField = make("input", { id, type: "text", placeholder: "not known", autocomplete: "off" });
      this.truthField.setAttribute("list", "class-list");
      this.truthField.addEventListener("change", () => {
        const { value } = this.truthField;
        const isKnown = value === "" || model.class_names.includes(value);
        this.truthField.setCustomValidity(isKnown ? "" : "The model has no such class.");
        if (isKnown) choose(value);
        else this.truthField.reportValidity();
      });
    }
    this.truthFrom = make("small", { id: `${id}-from` });
    this.truthField.setAttribute("aria-describedby", this.truthFrom.id);
    this.truth.replaceChildren(make("label", { htmlFor: id }, "True class"), this.truthField, this.truthFrom);
  }
}

/** How a model and a way of augmenting are named together. */
export function settingName(model, tta) {
  return tta === "none" ? model : `${model}, ${tta}`;
}

function bar({ name, probability }, predicted) {
  const fill = make("i");
  fill.style.width = `${100 * probability}%`;
  return make("li", { className: name === predicted ? "first" : "", data: { class: name, probability: String(probability) } },
    make("span", { className: "name", title: name }, make("bdi", {}, name)),
    make("span", { className: "value" }, percent(probability)),
    make("span", { className: "track", "aria-hidden": "true" }, fill));
}

function earlier(others) {
  return make("details", { className: "earlier" }, make("summary", {}, `Other answers: ${others.length}`),
    make("ul", {}, ...others.map((answer) => make("li", {},
      make("bdi", {}, settingName(answer.model, answer.tta)), ": ",
      ...(answer.status === "ok" ? [make("bdi", {}, answer.predicted), ` ${percent(answer.probability)}`] : [answer.reason])))));
}
