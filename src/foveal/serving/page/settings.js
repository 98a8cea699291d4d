// The controls that choose a model, and what is known about it.

import { make } from "./words.js";

const TTA_WORDS = {
  none: "none: one look",
  flip: "flip: 2 looks, one mirrored",
  dihedral: "dihedral: 8 looks, turned and mirrored",
  crops5: "crops5: 5 looks, middle and corners",
};
const MAX_NAMES = 200;
const MAX_TOLD = 12;

const at = (id) => document.getElementById(id);

/** The list of models, with the server's default chosen. */
export function showModels(models) {
  at("model").replaceChildren(...models.map((model) => make("option", { value: model.name, selected: Boolean(model.is_default) }, model.name)));
  at("model").disabled = models.length < 2;
}

/** The ways of augmenting that a model knows; the present one stays where it can. */
export function showTtaWays(model, present) {
  at("tta").replaceChildren(...model.tta.map((way) => make("option", { value: way }, TTA_WORDS[way] ?? way)));
  at("tta").value = model.tta.includes(present) ? present : model.tta[0];
  at("tta").disabled = model.tta.length < 2;
}

/** The facts of a model, the list of classes for typing, and whether it has heatmaps. */
export function showModel(model) {
  at("heatmaps").disabled = !model.heatmap;
  at("heatmaps-hint").textContent = model.heatmap
    ? "Where the model found what speaks for its answer."
    : `This model gives none with its answer${model.heatmap_reason ? `: ${model.heatmap_reason}` : ""}. The command foveal explain draws them from its run.`;
  at("class-list").replaceChildren(...model.class_names.map((name) => make("option", { value: name })));
  const shown = model.class_names.slice(0, MAX_NAMES);
  const numMore = model.class_names.length - shown.length;
  const names = make("ul", { className: "names" }, ...shown.map((name) => make("li", {}, make("bdi", {}, name))), numMore ? make("li", {}, `and ${numMore.toLocaleString("en")} more`) : null);
  const facts = [
    ["Accuracy", accuracyWords(model.metrics)],
    ["Network", model.architecture],
    ["Precision", model.precision],
    ["Sees", model.size_px ? `${model.size_px} × ${model.size_px} pixels` : ""],
    ["Licence", model.licence],
    [`Classes (${model.class_names.length.toLocaleString("en")})`, names],
  ];
  at("facts").replaceChildren(...facts.filter(([, value]) => value).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  at("about").hidden = false;
  at("present").textContent = model.name;
  showKnown(model);
}

/** In the empty page: what may be asked, and how good the answers are. */
function showKnown(model) {
  const { name, class_names: names, metrics } = model;
  const some = names.slice(0, names.length > MAX_TOLD + 1 ? MAX_TOLD : names.length);
  const more = names.length > some.length ? ` and ${(names.length - some.length).toLocaleString("en")} more` : "";
  const accuracy = accuracyWords(metrics);
  at("knows").replaceChildren(
    make("b", {}, make("bdi", {}, name)), ` tells ${names.length.toLocaleString("en")} classes apart: `,
    ...some.flatMap((each, number) => [number ? ", " : "", make("bdi", {}, each)]), more, ".",
    accuracy ? ` Accuracy ${accuracy}.` : "");
}

/** "0.99 [0.97, 1.00] on its test images", from the bundle's own figures; empty where it has none. */
function accuracyWords(metrics) {
  for (const [split, said] of [["test", "test"], ["val", "validation"]]) {
    const measured = metrics?.[split]?.accuracy;
    const [value, bounds] = Array.isArray(measured) ? measured : [measured];
    if (!Number.isFinite(value)) continue;
    const interval = bounds?.length === 2 ? ` [${bounds[0].toFixed(2)}, ${bounds[1].toFixed(2)}]` : "";
    return `${value.toFixed(2)}${interval} on its ${said} images`;
  }
  return "";
}
