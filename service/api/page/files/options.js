// Model, templates, scoring, temperature and threshold; and the fields of a request that they and the labels make.

import { call } from "./api.js";
import { t } from "./texts.js";

const OWN = "\n"; // no template set has this name
const MOST_SHOWN = 50;

const byId = (id) => document.getElementById(id);

export function optionsOf({ onChange }) {
  let models = [];
  const model = () => models.find((each) => each.name === byId("model").value);

  function scoring() {
    return byId("scoring").value || model()?.scoring || "softmax";
  }

  function temperature() {
    return Number((10 ** Number(byId("temperature").value)).toPrecision(2));
  }

  // Null if it is off, at the lower end of its scale.
  function threshold() {
    const { value, min } = byId("threshold");
    return value === min ? null : Number(value);
  }

  function show() {
    const cosine = scoring() === "cosine";
    byId("threshold").min = cosine ? "-1" : "0";
    byId("temperature").disabled = cosine; // a cosine has none
    byId("temperature-value").value = cosine ? "–" : String(temperature());
    byId("threshold-value").value = threshold() === null ? t("off") : threshold().toFixed(2);
    byId("temperature").setAttribute("aria-valuetext", byId("temperature-value").value);
    byId("threshold").setAttribute("aria-valuetext", byId("threshold-value").value);
    byId("own-templates-field").hidden = byId("templates").value !== OWN || byId("templates").disabled;
  }

  function showTemplates() {
    const chosen = byId("templates").value;
    const names = model()?.templates ?? ["default"];
    byId("templates").replaceChildren(...names.map((each) => new Option(each)), new Option(t("ownTemplates"), OWN));
    byId("templates").value = [...names, OWN].includes(chosen) ? chosen : "default";
  }

  function changed() {
    show();
    onChange();
  }

  byId("model").addEventListener("change", () => {
    showTemplates();
    changed();
  });
  byId("scoring").addEventListener("change", () => {
    byId("threshold").min = scoring() === "cosine" ? "-1" : "0";
    byId("threshold").value = byId("threshold").min; // it means something else on another scale
    changed();
  });
  byId("templates").addEventListener("change", () => {
    changed();
    if (!byId("own-templates-field").hidden) byId("own-templates").focus();
  });
  for (const id of ["temperature", "threshold", "own-templates"]) byId(id).addEventListener("input", changed);
  showTemplates();
  show();

  return {
    scoring,
    // Lists the models. Throws ApiError.
    async load() {
      ({ models } = await call("v1/models"));
      const chosen = byId("model").value;
      byId("model").replaceChildren(...models.map((each) => new Option(each.name)));
      byId("model").value = (models.find((each) => each.name === chosen) ?? models.find((each) => each.default)).name;
      showTemplates();
      show();
    },
    // The fields of the request as [name, value] pairs of text; what is the default is left out.
    fields({ labels, labelSet }) {
      byId("templates").disabled = labelSet !== "";
      byId("templates").title = labelSet ? t("ofTheSet") : "";
      show();
      const fields = labelSet ? [["label_set", labelSet]] : [["labels", JSON.stringify(labels)]];
      if (!labelSet && byId("templates").value !== "default") fields.push(["templates", templates()]);
      if (byId("scoring").value) fields.push(["scoring", byId("scoring").value]);
      if (scoring() !== "cosine" && temperature() !== 1) fields.push(["temperature", String(temperature())]);
      if (threshold() !== null) fields.push(["min_score", String(threshold())]);
      if (labelSet || labels.length > MOST_SHOWN) fields.push(["top_k", String(labelSet ? 10 : MOST_SHOWN)]);
      if (model() && !model().default) fields.push(["model", model().name]);
      return fields;
    },
  };

  function templates() {
    if (byId("templates").value !== OWN) return byId("templates").value;
    const lines = byId("own-templates").value.split("\n").map((each) => each.trim());
    return JSON.stringify(lines.filter(Boolean));
  }
}
