// The field of labels: chips, or a label set that the service keeps.

import { call } from "./api.js";
import { t } from "./texts.js";

const FIRST = ["cat", "dog", "bird", "cup", "chair", "rocket"];
const SETS = 1000;

const byId = (id) => document.getElementById(id);

// As the service compares labels: white space and Unicode form aside.
const plain = (text) => text.normalize("NFC").trim().replace(/\s+/gu, " ");

// Splits at commas (of three scripts) and ends of lines; "salt, pepper" in quotes is one label.
export function split(text) {
  const pieces = text.match(/"[^"\n]*"|[^,，、\n"]+/gu) ?? [];
  return pieces.map((each) => plain(each.replace(/^\s*"|"\s*$/gu, ""))).filter(Boolean);
}

export function labelsOf({ onChange }) {
  const input = byId("label");
  let labels = [...FIRST];

  function set(next) {
    labels = next;
    byId("chips").replaceChildren(...labels.map(chip));
    byId("clear").hidden = labels.length === 0;
  }

  function add(text) {
    const added = split(text).filter((each, index, all) => !labels.includes(each) && all.indexOf(each) === index);
    if (!added.length) return;
    set([...labels, ...added]);
    onChange();
  }

  function chip(label) {
    const item = document.createElement("li");
    const name = document.createElement("span");
    const remove = document.createElement("button");
    name.textContent = label;
    remove.textContent = "×";
    remove.setAttribute("aria-label", t("removeLabel", { label }));
    remove.addEventListener("click", () => drop(label));
    item.append(name, remove);
    return item;
  }

  function drop(label) {
    const index = labels.indexOf(label);
    set(labels.filter((each) => each !== label));
    const next = byId("chips").children[Math.min(index, labels.length - 1)]?.querySelector("button");
    (next ?? input).focus();
    onChange();
  }

  function take() {
    add(input.value);
    input.value = "";
  }

  input.addEventListener("keydown", (event) => {
    // While a syllable is being composed, Enter ends the syllable and not the label.
    if (event.isComposing) return;
    if (event.key === "Enter") {
      event.preventDefault();
      take();
    } else if (event.key === "Backspace" && input.value === "" && labels.length) {
      set(labels.slice(0, -1));
      onChange();
    }
  });
  input.addEventListener("input", (event) => {
    const open = (input.value.match(/"/gu) ?? []).length % 2 === 1;
    if (!event.isComposing && !open && /[,，、]/u.test(input.value)) take();
  });
  input.addEventListener("paste", (event) => {
    const text = event.clipboardData.getData("text/plain");
    // A field of one line would join the lines.
    if (!text.includes("\n")) return;
    event.preventDefault();
    add(input.value + text);
    input.value = "";
  });
  input.addEventListener("blur", take);
  byId("chips-box").addEventListener("click", (event) => {
    if (event.target === byId("chips-box") || event.target === byId("chips")) input.focus();
  });
  byId("clear").addEventListener("click", () => {
    set([]);
    input.focus();
    onChange();
  });
  byId("label-set").addEventListener("change", () => {
    byId("own-labels").hidden = byId("label-set").value !== "";
    onChange();
  });

  set(labels);
  return {
    get labels() { return labels; },
    get labelSet() { return byId("label-set").value; },
    // Lists the label sets that are stored. Throws ApiError.
    async load() {
      const { label_sets: sets } = await call(`v1/label-sets?limit=${SETS}`);
      const chosen = byId("label-set").value;
      const options = sets.map((each) => new Option(t("labelsOf", { name: each.name, count: each.label_count }), each.name));
      byId("label-set").replaceChildren(new Option(t("typedLabels"), ""), ...options);
      byId("label-set").value = sets.some((each) => each.name === chosen) ? chosen : "";
      byId("own-labels").hidden = byId("label-set").value !== "";
      byId("set-field").hidden = !sets.length;
    },
  };
}
