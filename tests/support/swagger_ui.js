// Sends a request as Swagger UI does, with the code of Swagger UI itself, and prints the URL and the parts of the form.
// Argument: the bundle of Swagger UI. Standard input: a JSON object with `spec`, `path`, `requestBody` and `files`, the
// names of the fields that are files. Also prints the values that Swagger UI fills into the fields of the form.
const { readFileSync } = require("fs");

function element() {
  const nothing = () => element();
  return new Proxy(nothing, { get: (_, name) => (name === "childNodes" ? [] : nothing), set: () => true });
}

global.window = global.self = global;
global.document = { createElement: element, addEventListener() {}, getElementsByTagName: () => [], querySelector: () => null };
global.location = { href: "http://localhost/", protocol: "http:", host: "localhost", search: "", hash: "", pathname: "/" };
global.addEventListener = () => {};
if (!global.navigator) global.navigator = { userAgent: "node" };

const bundle = { exports: {} };
new Function("module", "exports", "require", readFileSync(process.argv[2], "utf8"))(bundle, bundle.exports, require);
const fn = { jsonSchema202012: {} };
const system = { fn, configs: {}, getConfigs: () => ({}), getSystem: () => system };
for (const plugin of Object.values((global.SwaggerUIBundle || bundle.exports).plugins)) {
  try {
    const made = typeof plugin === "function" ? plugin(system) : plugin;
    Object.assign(fn.jsonSchema202012, made.fn?.jsonSchema202012);
    if (made.fn?.execute) fn.execute = made.fn.execute;
  } catch {
    // A plugin of the page, not of its requests.
  }
}

const { spec, path, requestBody, files } = JSON.parse(readFileSync(0, "utf8"));
for (const name of files) requestBody[name] = new File(["x"], name);
const form = spec.paths[path].post.requestBody.content["multipart/form-data"];
const samples = Object.fromEntries(
  Object.entries(form.schema.properties).map(([name, schema]) => [name, fn.jsonSchema202012.sampleFromSchema(schema)]),
);
fn.execute({
  spec,
  pathName: path,
  method: "post",
  requestContentType: "multipart/form-data",
  requestBody,
  userFetch: async (url, request) => {
    const parts = [...request.body.entries()].map(([name, value]) => [name, typeof value === "string" ? value : "a file"]);
    console.log(JSON.stringify({ url, parts, samples }));
    return new Response("{}");
  },
});
