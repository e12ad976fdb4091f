// What the official JavaScript client must be able to do on a gateway: the same as in checks.py, and what only this client
// has. Called with the folder node_modules and a target as JSON, it runs every check that the engine's options allow, and
// prints as JSON which passed (null) and which failed (why).

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.argv[2], "anything"));
const { default: OpenAI } = require("openai");
const { zodResponseFormat, zodTextFormat, zodFunction } = require("openai/helpers/zod");
const { z } = require("zod");

const target = JSON.parse(process.argv[3]);
const takes = new Set(target.takes);
const model = target.chat;
const messages = [{ role: "user", content: "Who cast the fog bell on North Mole?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Mole", "Ostend"] } },
  required: ["city"],
  additionalProperties: false,
};
const weather = { name: "weather", description: "The weather in a city.", parameters, strict: true };
const chatTool = { type: "function", function: weather };
const responseTool = { type: "function", ...weather };
const Answer = z.object({ kind: z.enum(["person", "place"]), sure: z.boolean() });

function clientWith(options = {}) {
  return new OpenAI({
    baseURL: target.base_url,
    apiKey: target.key,
    maxRetries: 0,
    timeout: target.timeout_s * 1000,
    ...options,
  });
}

const client = clientWith();
const checks = {};

function check(name, needs, run) {
  checks[name] = { needs, run };
}

async function all(stream) {
  const found = [];
  for await (const part of stream) found.push(part);
  return found;
}

check("models", [], async () => {
  const names = (await all(await client.models.list())).map((each) => each.id);
  assert(names.includes(model) && names.includes(target.embedding));
  assert.equal((await client.models.retrieve(model)).object, "model");
});

check("embeddings", [], async () => {
  const asked = { model: target.embedding, input: ["a harbour bell", "income tax"] };
  const packed = await client.embeddings.create(asked); // as base64, of the client's own accord
  const plain = await client.embeddings.create({ ...asked, encoding_format: "float" });
  assert.equal(plain.data.length, 2);
  plain.data.forEach(({ embedding }, number) => {
    const other = packed.data[number].embedding;
    assert(embedding.length > 0 && embedding.length === other.length);
    assert(embedding.every((x, i) => Math.abs(x - other[i]) < 1e-6));
  });
});

check("chat", [], async () => {
  const asked = { model, messages, temperature: 0, max_tokens: 24 };
  const { data, response, request_id } = await client.chat.completions.create(asked).withResponse();
  assert(data.choices[0].message.content);
  assert.equal(data.choices[0].message.role, "assistant");
  assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
  assert.equal(data.attribution.id, request_id);
  assert.equal(response.headers.get("x-tributary-request-id"), request_id);
});

check("chat stream", [], async () => {
  const asked = { model, messages, temperature: 0, max_tokens: 24 };
  const whole = await client.chat.completions.create(asked);
  const stream_options = { include_usage: true };
  const chunks = await all(await client.chat.completions.create({ ...asked, stream: true, stream_options }));
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.deepEqual(last.usage, whole.usage);
  const said = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");
  assert.equal(said, whole.choices[0].message.content);
  assert.equal(chunks.at(-1).choices[0].finish_reason, whole.choices[0].finish_reason);
  assert(chunks.at(-1).id.endsWith(chunks.at(-1).attribution.id));
});

check("chat stream helper", [], async () => {
  const runner = client.chat.completions.stream({ model, messages, temperature: 0, stop: [" "] });
  let said = "";
  runner.on("content", (more) => (said += more));
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices[0].message.content, said);
});

check("chat goes on with the answer as it came", [], async () => {
  const first = await client.chat.completions.create({ model, messages, max_tokens: 5, temperature: 0 });
  const more = [...messages, first.choices[0].message, { role: "user", content: "And who rang it?" }];
  const again = await client.chat.completions.create({ model, messages: more, max_tokens: 5, temperature: 0 });
  assert(again.usage.prompt_tokens > first.usage.prompt_tokens);
});

check("completions", [], async () => {
  const asked = { model, prompt: "The capital of France is", max_tokens: 4, temperature: 0 };
  const whole = await client.completions.create(asked);
  const chunks = await all(await client.completions.create({ ...asked, stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), whole.choices[0].text);
  assert(whole.usage.completion_tokens <= 4);
});

check("several choices", ["n"], async () => {
  const asked = { model, messages, max_tokens: 8, n: 3 };
  const whole = await client.chat.completions.create(asked);
  assert.deepEqual(whole.choices.map((choice) => choice.index), [0, 1, 2]);
  const chunks = await all(await client.chat.completions.create({ ...asked, stream: true }));
  const ended = chunks.flatMap((chunk) => chunk.choices).filter((choice) => choice.finish_reason);
  assert.deepEqual(ended.map((choice) => choice.index).sort(), [0, 1, 2]);
});

check("log-probabilities", ["logprobs", "top_logprobs"], async () => {
  const asked = { model, messages, max_tokens: 8, temperature: 0, logprobs: true, top_logprobs: 2 };
  const whole = await client.chat.completions.create(asked);
  assert(whole.choices[0].logprobs.content.every((entry) => entry.logprob <= 0));
  const final = await client.chat.completions.stream(asked).finalChatCompletion().catch((error) => error);
  if (!(final instanceof Error)) assert.deepEqual(final.choices[0].logprobs.content, whole.choices[0].logprobs.content);
  else assert(final instanceof OpenAI.LengthFinishReasonError, final);
});

check("chat calls a tool and reads what it returned", ["tools", "tool_choice"], async () => {
  const asked = { model, tools: [chatTool], temperature: 0 };
  const tool_choice = { type: "function", function: { name: "weather" } };
  const first = await client.chat.completions.create({ ...asked, messages, tool_choice, max_tokens: 64 });
  const { message } = first.choices[0];
  const [call] = message.tool_calls;
  assert.equal(call.function.name, "weather");
  assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["city"]);
  const more = [...messages, message, { role: "tool", tool_call_id: call.id, content: "fog" }];
  const second = await client.chat.completions.create({ ...asked, messages: more, tool_choice: "none", max_tokens: 8 });
  assert(second.choices[0].message.content);
});

check("chat runs tools by itself", ["tools", "tool_choice", "auto tools"], async () => {
  const asked = [];
  const tool = zodFunction({
    name: "weather",
    parameters: z.object({ city: z.enum(["Mole", "Ostend"]) }),
    function: ({ city }) => (asked.push(city), "fog"),
  });
  const runner = client.chat.completions.runTools({ model, messages, tools: [tool], temperature: 0 });
  assert(await runner.finalContent());
  assert.deepEqual(asked, ["Mole"]);
});

check("chat is parsed", ["response_format"], async () => {
  const asked = { model, messages, temperature: 0, max_tokens: 100 };
  const response_format = zodResponseFormat(Answer, "answer");
  const parsed = (await client.chat.completions.parse({ ...asked, response_format })).choices[0].message.parsed;
  assert(["person", "place"].includes(parsed.kind));
  const streamed = await client.chat.completions.stream({ ...asked, response_format }).finalChatCompletion();
  assert.deepEqual(streamed.choices[0].message.parsed, parsed);
});

check("response", [], async () => {
  const asked = { model, input: messages[0].content, temperature: 0, max_output_tokens: 24 };
  const said = await client.responses.create(asked);
  assert(said.output_text);
  assert.equal(said.usage.total_tokens, said.usage.input_tokens + said.usage.output_tokens);
  assert.equal(said._request_id, said.attribution.id);
});

check("response stream", [], async () => {
  const asked = { model, input: messages, instructions: "Be brief.", temperature: 0, max_output_tokens: 24 };
  const whole = await client.responses.create(asked);
  const events = await all(await client.responses.create({ ...asked, stream: true }));
  events.forEach((event, number) => assert.equal(event.sequence_number, number));
  const last = events.at(-1);
  assert.equal(last.type, `response.${whole.status}`);
  const said = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  assert.equal(said.join(""), whole.output_text);
  assert.deepEqual(last.response.usage, whole.usage);
  assert(last.response.id.endsWith(last.response.attribution.id));
});

check("response stream helper", [], async () => {
  const stream = client.responses.stream({ model, input: messages, temperature: 0, max_output_tokens: 24 });
  const events = await all(stream);
  const last = events.at(-1);
  assert(["response.completed", "response.incomplete"].includes(last.type));
  const said = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  assert.equal(last.response.output[0].content[0].text, said.join(""));
});

check("response goes on with the output as it came", [], async () => {
  const asked = { model, temperature: 0, max_output_tokens: 5 };
  const first = await client.responses.create({ ...asked, input: messages });
  const more = [...messages, ...first.output, { role: "user", content: "And who rang it?" }];
  const again = await client.responses.create({ ...asked, input: more });
  assert(again.usage.input_tokens > first.usage.input_tokens);
});

check("response calls a tool and reads what it returned", ["tools", "tool_choice"], async () => {
  const asked = { model, tools: [responseTool], temperature: 0, max_output_tokens: 64 };
  const tool_choice = { type: "function", name: "weather" };
  const first = await client.responses.create({ ...asked, input: messages, tool_choice });
  const call = first.output.at(-1);
  assert.equal(call.name, "weather");
  const streamed = await client.responses.stream({ ...asked, input: messages, tool_choice }).finalResponse();
  assert.equal(streamed.output.at(-1).arguments, call.arguments);
  const output = { type: "function_call_output", call_id: call.call_id, output: "fog" };
  const input = [...messages, ...first.output, output];
  assert((await client.responses.create({ ...asked, input, tool_choice: "none" })).output_text);
});

check("response is parsed", ["response_format"], async () => {
  const asked = { model, temperature: 0, max_output_tokens: 100, text: { format: zodTextFormat(Answer, "answer") } };
  const first = await client.responses.parse({ ...asked, input: messages });
  assert(["person", "place"].includes(first.output_parsed.kind));
  const input = [...messages, ...first.output, { role: "user", content: "Are you sure?" }];
  assert((await client.responses.parse({ ...asked, input })).output_parsed);
});

check("errors are the client's own", [], async () => {
  const chat = (asked) => client.chat.completions.create({ model, messages, ...asked });
  const respond = (asked) => client.responses.create({ model, input: "Why?", ...asked });
  const failures = [
    [() => chat({ model: "gpt-9" }), OpenAI.NotFoundError, "model_not_found", "model"],
    [() => client.models.retrieve("gpt-9"), OpenAI.NotFoundError, "model_not_found", "model"],
    [() => chat({ temperature: 9 }), OpenAI.BadRequestError, null, "temperature"],
    [() => respond({ input: "word ".repeat(60_000) }), OpenAI.BadRequestError, "context_length_exceeded", null],
    [() => respond({ background: true }), OpenAI.BadRequestError, "unsupported_parameter", "background"],
    [() => respond({ store: true }), OpenAI.BadRequestError, "unsupported_parameter", "store"],
    [() => clientWith({ apiKey: "trib-caller-wrong" }).models.list(), OpenAI.AuthenticationError, "invalid_api_key", null],
  ];
  for (const [call, kind, code, param] of failures) {
    await assert.rejects(async () => await call(), (error) => {
      assert(error instanceof kind, error);
      assert.deepEqual([error.code, error.param], [code, param]);
      return true;
    });
  }
});

// Only on a gateway whose engine does what a prompt tells it (see `TroubledEngine`).

const ask = (content, options = {}, request = {}) =>
  clientWith(options).chat.completions.create({ model, messages: [{ role: "user", content }], ...request });

check("a caller without credit", ["trouble"], async () => {
  await assert.rejects(ask("x", { apiKey: target.poor_key }), { status: 402, code: "insufficient_quota" });
});

check("a caller over its limit", ["trouble"], async () => {
  await assert.rejects(ask("x", { apiKey: target.limited_key }), (error) => {
    assert(error instanceof OpenAI.RateLimitError, error);
    assert(Number(error.headers.get("retry-after")) > 0);
    return true;
  });
});

check("an engine that fails once is asked again", ["trouble"], async () => {
  await assert.rejects(ask("fail once: js 1"), (error) => error instanceof OpenAI.InternalServerError);
  assert((await ask("fail once: js 2", { maxRetries: 2 })).choices[0].message.content);
});

check("an engine that is too slow", ["trouble"], async () => {
  await assert.rejects(ask("slowly", { timeout: 300 }), (error) => error instanceof OpenAI.APIConnectionTimeoutError);
});

check("an engine that breaks off", ["trouble"], async () => {
  const said = await all(await ask("break off", {}, { stream: true })).catch((error) => error);
  assert(said instanceof OpenAI.APIError, said);
  const events = await all(await client.responses.create({ model, input: "break off", stream: true }));
  assert.equal(events.at(-1).type, "response.failed");
});

check("a stream that is let go", ["trouble"], async () => {
  const stream = await ask("slowly", {}, { stream: true });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break; // breaking aborts the request
});

const outcome = {};
for (const [name, { needs, run }] of Object.entries(checks)) {
  if (!needs.every((need) => takes.has(need))) continue;
  try {
    await run();
    outcome[name] = null;
  } catch (error) {
    outcome[name] = String(error.stack ?? error);
  }
}
console.log(JSON.stringify(outcome));
