// What the Vercel AI SDK and its Alibaba provider get from a DashScope at URL; one JSON object goes to stdout.

import { createAlibaba } from "@ai-sdk/alibaba";
import { embedMany, experimental_generateVideo as generateVideo, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false; // they go to stdout
const url = process.env.URL;
const provider = createAlibaba({
  apiKey: "sk-one",
  baseURL: `${url}/compatible-mode/v1`,
  embeddingBaseURL: `${url}/api/v1`,
  videoBaseURL: url,
});
const prompt = "The wheel lifts water out of the river. It never stops.";

async function streamed() {
  let said = "";
  const result = streamText({ model: provider("qwen-plus"), prompt });
  for await (const piece of result.textStream) said += piece;
  return { said, usage: (await result.usage).outputTokens };
}

// The SDK's own download refuses addresses of this machine.
async function download({ url: link }) {
  const answer = await fetch(link);
  return { data: new Uint8Array(await answer.arrayBuffer()), mediaType: answer.headers.get("content-type") };
}

async function video(model, options) {
  const made = await generateVideo({
    model: provider.video(model),
    prompt,
    download,
    providerOptions: { alibaba: { pollIntervalMs: 100, watermark: false, ...options.alibaba } },
    ...options.call,
  });
  return { bytes: made.videos[0].uint8Array.length, told: made.providerMetadata.alibaba };
}

const plain = await generateText({ model: provider("qwen-plus"), system: "Be brief.", prompt });
const called = await generateText({
  model: provider("qwen-plus"),
  prompt: "Use weather for the weather in Hangzhou.",
  tools: { weather: tool({ description: "the weather", inputSchema: z.object({ city: z.string() }) }) },
});
const json = await generateText({
  model: provider("qwen-plus"),
  prompt: `Answer in JSON. ${prompt}`,
  output: Output.object({ schema: z.object({ title: z.string() }) }),
});
const seen = await generateText({
  model: provider("qwen3-vl-plus"),
  messages: [
    {
      role: "user",
      content: [
        { type: "image", image: new URL("https://example.com/cat.png") },
        { type: "text", text: "What is it?" },
      ],
    },
  ],
});
const thought = await generateText({
  model: provider("qwen3-vl-plus"),
  prompt,
  providerOptions: { alibaba: { enableThinking: false } },
});
const vectors = await embedMany({ model: provider.embeddingModel("text-embedding-v4"), values: ["one", "two"] });

console.log(
  JSON.stringify({
    plain: { text: plain.text, reason: plain.finishReason, tokens: plain.usage.inputTokens },
    streamed: await streamed(),
    tool: called.toolCalls.map((call) => [call.toolName, call.input]),
    json: json.output,
    seen: seen.text,
    thought: thought.text,
    vectors: vectors.embeddings.map((vector) => vector.length),
    videos: [
      await video("wan2.6-t2v", { call: { resolution: "1280x720", duration: 2 }, alibaba: {} }),
      await video("wan2.7-t2v", { call: { aspectRatio: "9:16", resolution: "720x1280", duration: 2 }, alibaba: {} }),
      await video("wan3.0-video", {
        call: { duration: 2 },
        alibaba: { media: [{ type: "reference_image", url: "https://example.com/a.png" }], ratio: "adaptive" },
      }),
    ],
  }),
);
