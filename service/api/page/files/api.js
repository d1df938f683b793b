// Requests to the service that served this page, and its errors.

import { t } from "./texts.js";

// The service may lie below a path of a proxy.
const BASE = new URL(".", document.baseURI);

let key = "";

export function useKey(text) {
  key = text;
}

export const hasKey = () => key !== "";

export const address = (path) => new URL(path, BASE).href;

// An answer that is not 2xx, or none (status 0). `message` has the service's own words.
export class ApiError extends Error {
  constructor(status, message, { retryAfter = 0, ofTheService = false } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.ofTheService = ofTheService;
  }
}

// Returns the answer's JSON. Throws ApiError, or the AbortError of `signal`.
export async function call(path, init = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let answer;
  try {
    answer = await fetch(address(path), { ...init, headers, cache: "no-store" });
    if (answer.ok) return await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, t("unreachable"));
  }
  throw await problem(answer);
}

// The request to classify a picture: `fields` are [name, value] pairs of text.
export function classify(picture, fields, signal) {
  const form = new FormData();
  form.append("image", picture.blob, picture.name);
  for (const [name, value] of fields) form.append(name, value);
  return call("v1/classify", { method: "POST", body: form, signal });
}

async function problem(answer) {
  const retryAfter = Number(answer.headers.get("retry-after")) || 0;
  // A proxy's error is no problem of ours.
  const body = await answer.json().catch(() => ({}));
  const ofTheService = typeof body.detail === "string";
  const text = ofTheService ? body.detail : `${answer.status} ${answer.statusText}`.trim();
  return new ApiError(answer.status, text, { retryAfter, ofTheService });
}
