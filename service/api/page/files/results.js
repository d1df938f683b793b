// The answer: bars that move to their new places, warnings, and the strip of several pictures.

import { t } from "./texts.js";

const byId = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");

export function shown(score, scoring) {
  if (scoring === "cosine") return score.toFixed(3);
  return 0 < score && score < 0.0005 ? "< 0.1%" : `${(100 * score).toFixed(1)}%`;
}

// Shows predictions, best first. A label keeps its row, which moves; `scoring` says what a score means.
export function showBars(predictions, scoring) {
  const list = byId("bars");
  const rows = new Map([...list.children].map((row) => [row.dataset.label, row]));
  const before = new Map([...rows].map(([label, row]) => [label, row.offsetTop]));
  list.replaceChildren(...predictions.map(({ label, score }) => filled(rows.get(label) ?? made(label), score, scoring)));
  if (still.matches) return;
  for (const row of list.children) {
    const moved = (before.get(row.dataset.label) ?? row.offsetTop) - row.offsetTop;
    if (moved) row.animate([{ transform: `translateY(${moved}px)` }, { transform: "none" }], { duration: 260, easing: "ease-out" });
  }
}

function made(label) {
  const row = document.createElement("li");
  const parts = ["name", "score", "track"].map((name) => {
    const part = document.createElement("span");
    part.className = name;
    return part;
  });
  parts[0].textContent = label;
  parts[2].append(document.createElement("span"));
  row.dataset.label = label;
  row.append(...parts);
  return row;
}

function filled(row, score, scoring) {
  row.querySelector(".score").textContent = shown(score, scoring);
  row.querySelector(".track span").style.setProperty("width", `${100 * Math.min(1, Math.max(0, score))}%`);
  return row;
}

export function showWarnings(warnings = []) {
  byId("warnings").hidden = !warnings.length;
  byId("warnings").replaceChildren(
    ...warnings.map(({ message }) => Object.assign(document.createElement("li"), { textContent: message })),
  );
}

// Shows one picture large, and all of several small, each with its best label.
export function showPictures({ all, current, select }, scoring) {
  byId("remove").hidden = current === null;
  byId("invitation").hidden = current !== null;
  const undrawn = current !== null && byId("preview").dataset.undrawn === current.url;
  byId("preview").hidden = current === null || undrawn;
  byId("undrawn").hidden = !undrawn;
  if (current !== null) {
    byId("preview").alt = current.name;
    if (byId("preview").src !== current.url) byId("preview").src = current.url;
  } else {
    byId("preview").removeAttribute("src");
  }
  const first = current?.answer?.predictions[0];
  byId("best").hidden = !first;
  byId("best").textContent = first ? t("best", { label: first.label, score: shown(first.score, scoring) }) : "";
  byId("strip").hidden = all.length < 2;
  if (all.length < 2) return byId("strip").replaceChildren();
  const buttons = new Map([...byId("strip").children].map((item) => [Number(item.dataset.id), item]));
  byId("strip").replaceChildren(...all.map((each) => buttons.get(each.id) ?? thumbnail(each, select)));
  all.forEach((each, index) => {
    const item = byId("strip").children[index];
    const best = each.answer?.predictions[0];
    item.querySelector("button").setAttribute("aria-current", String(each === current));
    item.classList.toggle("failed", Boolean(each.error));
    item.querySelector(".best").textContent = each.error
      ? t("failed")
      : best ? t("best", { label: best.label, score: shown(best.score, scoring) }) : "…";
  });
}

function thumbnail(picture, select) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const image = Object.assign(document.createElement("img"), { src: picture.url, alt: picture.name });
  const best = Object.assign(document.createElement("span"), { className: "best" });
  button.append(image, best);
  button.addEventListener("click", () => select(picture));
  item.dataset.id = picture.id;
  item.append(button);
  return item;
}

byId("preview").addEventListener("error", () => {
  if (!byId("preview").hasAttribute("src")) return;
  byId("preview").dataset.undrawn = byId("preview").src;
  byId("preview").hidden = true;
  byId("undrawn").hidden = false;
  byId("undrawn").textContent = t("undrawn", { name: byId("preview").alt });
});
