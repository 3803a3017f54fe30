// A receiver of Noria's webhooks, with nothing but Node: `SECRET=whsec_… node receiver.mjs`.
//
// Each event is kept before it is answered, once however often it comes: what is to be done about it is then done from
// the folder (in production, a table), and takes as long as it takes.

import { createHmac, timingSafeEqual } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";

const { SECRET, INBOX = "inbox", PORT = "8080" } = process.env;
const KEY = Buffer.from(SECRET.replace(/^whsec_/, ""), "base64");
const LONGEST = 1 << 20; // bytes of a body
const TOLERANCE = 5 * 60; // seconds between its signature and now

// Whether one of its signatures is ours: there are two while the secret is rotated.
function isSigned(headers, body) {
  const { "webhook-id": id, "webhook-timestamp": at, "webhook-signature": signatures = "" } = headers;
  if (!/^[\w-]{1,100}$/.test(id ?? "") || !(Math.abs(Date.now() / 1000 - Number(at)) <= TOLERANCE)) return false;
  const expected = createHmac("sha256", KEY).update(`${id}.${at}.`).update(body).digest();
  return signatures.split(" ").some((signature) => {
    const [version, said = ""] = signature.split(",");
    const given = Buffer.from(said, "base64");
    return version === "v1" && given.length === expected.length && timingSafeEqual(given, expected);
  });
}

// Keeps an event; false where it has come before: the id is the same on every retry.
function keep(id, body) {
  try {
    writeFileSync(join(INBOX, `${id}.json`), body, { flag: "wx", flush: true });
    return true;
  } catch (error) {
    if (error.code === "EEXIST") return false;
    throw error;
  }
}

async function read(request) {
  const pieces = [];
  let length = 0;
  for await (const piece of request) {
    length += piece.length;
    if (length > LONGEST) return null;
    pieces.push(piece);
  }
  return Buffer.concat(pieces);
}

async function receive(request, response) {
  const body = await read(request);
  if (body === null) return response.writeHead(413, { connection: "close" }).end();
  if (!isSigned(request.headers, body)) return response.writeHead(401).end();
  const id = request.headers["webhook-id"];
  if (keep(id, body)) {
    const event = JSON.parse(body);
    console.log(id, event.type, event.data.id);
  }
  return response.writeHead(204).end();
}

mkdirSync(INBOX, { recursive: true });
createServer((request, response) => {
  receive(request, response).catch(() => response.writeHead(500).end()); // it comes again
}).listen(Number(PORT), "127.0.0.1");
