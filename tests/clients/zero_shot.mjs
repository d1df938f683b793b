// Runs the real client against an endpoint. Reads one JSON object from standard input, {clients, url, image, parameters},
// and writes another: what the client returned or threw, and how many requests it made.
import { createRequire } from "node:module";
import { text } from "node:stream/consumers";

const { clients, url, image, parameters } = JSON.parse(await text(process.stdin));
const { InferenceClient } = createRequire(`${clients}/package.json`)("@huggingface/inference");

let requests = 0;
const counting = (...call) => {
  requests += 1;
  return fetch(...call);
};
const outcome = {};
try {
  const client = new InferenceClient("", { endpointUrl: url, fetch: counting });
  outcome.result = await client.zeroShotImageClassification({
    inputs: new Blob([Buffer.from(image, "base64")]),
    parameters,
  });
} catch (error) {
  outcome.error = { name: error.name, message: error.message, status: error.httpResponse?.status };
}
process.stdout.write(JSON.stringify({ ...outcome, requests }));
