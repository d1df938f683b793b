// The request of the page as a program that runs elsewhere. A key is read from the environment, never shown.

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
// A JSON string is a string of Python and JavaScript too.
const quoted = (text) => JSON.stringify(text);

// `picture` has a name, and a `from` (its URL) if everyone can fetch it; `fields` are [name, value] pairs of text.
export function curl({ url, picture, fields, key }) {
  // In quotes of curl's own: a comma or a semicolon would end the name.
  const file = `"${picture.name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  const plain = /^[\w.-]+$/u.test(picture.name);
  return [
    ...(picture.from ? [`curl -sSO ${shell(picture.from)}`] : []),
    [
      `curl -sS ${shell(url)}`,
      ...(key ? ['-H "Authorization: Bearer $ANYCLASS_API_KEY"'] : []),
      `-F ${plain ? `image=@${picture.name}` : shell(`image=@${file}`)}`,
      ...fields.map(([name, value]) => `--form-string ${shell(`${name}=${value}`)}`),
    ].join(" \\\n  "),
  ].join("\n");
}

export function python({ url, picture, fields, key }) {
  const pairs = fields.map(([name, value]) => `        ${quoted(name)}: ${value.startsWith("[") ? `json.dumps(${list(value)})` : quoted(value)},`);
  const picked = picture.from
    ? `image = requests.get(${quoted(picture.from)}, timeout=60).content`
    : `image = Path(${quoted(picture.name)}).read_bytes()`;
  const imports = ["import json", ...(key ? ["import os"] : []), ...(picture.from ? [] : ["from pathlib import Path"])];
  return [
    ...imports,
    "",
    "import requests  # pip install requests",
    "",
    picked,
    "answer = requests.post(",
    `    ${quoted(url)},`,
    ...(key ? ['    headers={"Authorization": f"Bearer {os.environ[\'ANYCLASS_API_KEY\']}"},'] : []),
    `    files={"image": (${quoted(picture.name)}, image)},`,
    "    data={",
    ...pairs,
    "    },",
    "    timeout=60,",
    ")",
    "print(json.dumps(answer.json(), indent=2, ensure_ascii=False))",
  ].join("\n");
}

export function javascript({ url, picture, fields, key }) {
  const picked = picture.from
    ? `const image = await (await fetch(${quoted(picture.from)})).blob();`
    : `const image = new Blob([await readFile(${quoted(picture.name)})]);`;
  return [
    "// Node 18 or newer: save as classify.mjs, then node classify.mjs",
    ...(picture.from ? [] : ['import { readFile } from "node:fs/promises";', ""]),
    picked,
    "const form = new FormData();",
    `form.append("image", image, ${quoted(picture.name)});`,
    ...fields.map(([name, value]) => `form.append(${quoted(name)}, ${value.startsWith("[") ? `JSON.stringify(${list(value)})` : quoted(value)});`),
    `const answer = await fetch(${quoted(url)}, {`,
    '  method: "POST",',
    ...(key ? ["  headers: { Authorization: `Bearer ${process.env.ANYCLASS_API_KEY}` },"] : []),
    "  body: form,",
    "});",
    "console.log(JSON.stringify(await answer.json(), null, 2));",
  ].join("\n");
}

const list = (value) => `[${JSON.parse(value).map(quoted).join(", ")}]`;
