// Puts the page together: a change of pictures, labels or options becomes requests, and their answers are shown.

import { address, ApiError, classify, hasKey, useKey } from "./api.js";
import { labelsOf } from "./labels.js";
import { optionsOf } from "./options.js";
import { picturesOf } from "./pictures.js";
import { showBars, showPictures, shown, showWarnings } from "./results.js";
import * as snippets from "./snippets.js";
import { t, translate } from "./texts.js";

const PAUSE_MS = 80; // of typing a template and sliding, before a request; a label is whole and waits for nothing
const AT_ONCE = 2; // further pictures would wait in the service's queue
const AGAIN_MS = 2000;

const byId = (id) => document.getElementById(id);

translate();
const labels = labelsOf({ onChange: ask });
const options = optionsOf({ onChange: changed });
const pictures = picturesOf({ onChange: looked, onTrouble: notify });
let asked = null; // the controller of the requests under way
let timer = 0;
let fields = [];
let notice = { text: "", english: false }; // what concerns no single picture

// Another picture came, went or is looked at: answers that still hold are shown, missing ones are asked for.
function looked() {
  show();
  if (pictures.all.some((each) => each.asked !== request())) ask();
}

function changed() {
  showCode();
  clearTimeout(timer);
  timer = setTimeout(ask, PAUSE_MS);
}

const request = () => JSON.stringify(fields);

// Asks for every picture, the current one first. Requests of before are aborted: the service drops their work.
async function ask() {
  clearTimeout(timer);
  asked?.abort();
  asked = new AbortController();
  const { signal } = asked;
  fields = options.fields(labels);
  showCode();
  show();
  if (!labels.labelSet && !labels.labels.length) return;
  const waiting = pictures.all.filter((each) => each.asked !== request());
  waiting.sort((one, other) => Number(other === pictures.current) - Number(one === pictures.current));
  const worker = async () => {
    for (let picture = waiting.shift(); picture && !signal.aborted; picture = waiting.shift()) await askFor(picture, signal);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

async function askFor(picture, signal) {
  const [began, sent, scoring] = [performance.now(), request(), options.scoring()];
  picture.busy = true;
  show();
  try {
    const answer = await classify(picture, fields, signal);
    Object.assign(picture, { answer, error: null, ms: Math.round(performance.now() - began), asked: sent, scoring });
  } catch (error) {
    if (error.name === "AbortError") return;
    Object.assign(picture, { answer: null, error, asked: error.status === 422 || error.status === 415 ? sent : null });
    if (error.status === 401) needKey();
  }
  picture.busy = false;
  show();
}

function show() {
  const picture = pictures.current;
  showPictures(pictures, picture?.scoring ?? options.scoring());
  showAnswer(picture);
  showCode();
}

function showAnswer(picture) {
  const none = !labels.labelSet && !labels.labels.length;
  const answer = none ? null : picture?.answer;
  showTrouble();
  if (!answer && picture && !picture.error && !none) return say(t("working")); // the old bars stay until the new
  showBars(answer?.predictions ?? [], picture?.scoring);
  showWarnings(answer?.warnings);
  if (none) return say(t("needsLabels"));
  if (!picture) return say(t("needsPicture"));
  if (picture.error) return say(t("failed"));
  const [best] = answer.predictions;
  say(best ? t("answered", { model: answer.model, ms: picture.ms }) : t("noneAbove"));
  if (!picture.busy && best) speak(t("best", { label: best.label, score: shown(best.score, picture.scoring) }));
}

const say = (text) => put(byId("status"), text);
const speak = (text) => put(byId("spoken"), text);

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function notify(text, english = false) {
  notice = { text, english };
  showTrouble();
}

function showTrouble() {
  const error = pictures?.current?.error;
  const { text, english } = error ? { text: error.message, english: error.ofTheService } : notice;
  byId("problem").hidden = !text;
  byId("problem").lang = english ? "en" : document.documentElement.lang;
  put(byId("problem"), text);
}

function showCode() {
  const picture = pictures.current;
  const name = picture?.name ?? "photo.jpg";
  const chosen = document.querySelector('[role="tab"][aria-selected="true"]').id.replace("tab-", "");
  const code = snippets[chosen]({
    url: address("v1/classify"),
    picture: { name, from: picture?.example ? address(`page/${picture.example}`) : null },
    fields: options.fields(labels),
    key: hasKey(),
  });
  put(byId("code"), code);
  const notes = [...(picture?.example ? [] : [t("folder", { name })]), ...(hasKey() ? [t("keyVariable")] : [])];
  put(byId("code-note"), notes.join(" "));
}

const tabs = [...document.querySelectorAll('[role="tab"]')];
for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) choose(tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length]);
  });
}

function choose(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
  }
  byId("code-panel").setAttribute("aria-labelledby", tab.id);
  tab.focus();
  showCode();
}

byId("copy").addEventListener("click", async () => {
  let done = true;
  try {
    await navigator.clipboard.writeText(byId("code").textContent);
  } catch {
    // Without https the browser has no clipboard for pages; the older way needs a selection.
    getSelection().selectAllChildren(byId("code"));
    done = document.execCommand("copy");
  }
  speak(t(done ? "copied" : "notCopied"));
  byId("copy").textContent = t(done ? "copied" : "notCopied");
  setTimeout(() => { byId("copy").textContent = t("copy"); }, AGAIN_MS);
});

function needKey() {
  if (byId("key-form").hidden) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  start();
});

// Reads what the service offers; tries again while it is starting or away.
async function start() {
  try {
    await options.load();
    notify("");
    byId("key-form").hidden = true;
    await labels.load();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notify(error.message, error.ofTheService);
    if (error.status === 401) return needKey();
    setTimeout(start, 1000 * error.retryAfter || AGAIN_MS);
    return;
  }
  ask();
}

start();
