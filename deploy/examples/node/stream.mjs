// A streaming client in another language, from the .proto files as they are.
//
//   cd deploy/examples/node && npm install && node stream.mjs [GATEWAY [MODEL]]

import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const protos = process.env.QUIRE_PROTOS ?? join(dirname(fileURLToPath(import.meta.url)), "../../../protos");
const definition = loader.loadSync("quire/v1/inference.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: Number,
  oneofs: true,
});
const { quire } = grpc.loadPackageDefinition(definition);
const gateway = process.argv[2] ?? "127.0.0.1:50051";
const client = new quire.v1.InferenceService(gateway, grpc.credentials.createInsecure());

const call = client.Generate(
  { model: process.argv[3] ?? "", prompt: { text: "Once upon a time" }, sampling: { temperature: 0, max_tokens: 40 } },
  { deadline: Date.now() + 60_000 },
);
let text = "";
call.on("data", (news) => {
  if (news.event === "tokens") text += news.tokens.text;
  if (news.event === "finished") text += news.finished.text;
  if (news.event === "done") console.log(`${news.done.completion_tokens} tokens: ${JSON.stringify(text)}`);
});
call.on("error", (error) => {
  console.error(`error: ${error.details}`);
  process.exitCode = 1;
});
call.on("end", () => client.close());
