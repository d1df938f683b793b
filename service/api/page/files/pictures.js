// The pictures of the page, however they come: dropped, pasted, chosen, photographed, examples.

import { address } from "./api.js";
import { t } from "./texts.js";

const MOST = 50;

const byId = (id) => document.getElementById(id);

// Calls onChange() when pictures come or go, or another is the current one; onTrouble(text) if files are no pictures.
export function picturesOf({ onChange, onTrouble }) {
  const all = [];
  let current = null;
  let number = 0;

  function add(files, example = null) {
    const given = [...files];
    // Some systems give a file of a rare format no type; the service decides what it can read.
    const usable = given.filter((each) => each.type === "" || each.type.startsWith("image/"));
    onTrouble(given.length && !usable.length ? t("noPicture") : "");
    if (!usable.length) return;
    const room = MOST - all.length;
    if (usable.length > room) onTrouble(t("tooMany", { most: MOST }));
    const added = usable.slice(0, room).map((blob) => ({
      id: ++number,
      blob,
      name: blob.name || "picture.png",
      url: URL.createObjectURL(blob),
      example,
    }));
    if (!added.length) return;
    all.push(...added);
    current = added[0];
    onChange();
  }

  function remove() {
    const index = all.indexOf(current);
    if (index < 0) return;
    URL.revokeObjectURL(current.url);
    all.splice(index, 1);
    current = all[Math.min(index, all.length - 1)] ?? null;
    onChange();
  }

  function select(picture) {
    current = picture;
    onChange();
  }

  async function addExample(name) {
    const known = all.find((each) => each.example === name);
    if (known) return select(known);
    try {
      const answer = await fetch(address(`page/${name}`));
      if (!answer.ok) throw new TypeError(answer.statusText);
      add([new File([await answer.blob()], name, { type: "image/jpeg" })], name);
    } catch {
      onTrouble(t("unreachable"));
    }
  }

  listen({ add, remove, addExample });
  return { all, select, get current() { return current; } };
}

function listen({ add, remove, addExample }) {
  for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", ({ target }) => {
      add(target.files);
      target.value = ""; // the same file can be chosen again
    });
  }
  byId("remove").addEventListener("click", () => {
    remove();
    if (byId("remove").hidden) byId("choose").focus();
  });
  for (const button of document.querySelectorAll("[data-example]")) {
    button.addEventListener("click", () => addExample(button.dataset.example));
  }
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return; // text, for a field
    event.preventDefault();
    add(event.clipboardData.files);
  });
  // The whole window takes a drop: a picture beside the frame would replace the page.
  let inside = 0;
  const mark = () => document.body.classList.toggle("dropping", inside > 0);
  document.addEventListener("dragenter", (event) => {
    event.preventDefault();
    inside += 1;
    mark();
  });
  document.addEventListener("dragleave", () => {
    inside -= 1;
    mark();
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    inside = 0;
    mark();
    add(event.dataTransfer.files);
  });
}
