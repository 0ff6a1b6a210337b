// Reads the events of a phase-bus from Node.js and prints them as JSON lines, as `phase-bus tail --json` does.
//
//     npm install
//     PHASE_BUS_ADDRESS=ipc:///tmp/my-bus node reader.mjs [TOPIC PREFIX ...]
//
// The protocol, as far as a reader of live events needs it:
// - A DEALER to the bus's address (a directory's control.ipc, or the host and port) says hello, a msgpack map tagged
//   by "op"; the welcome says where events are published: a socket's name in that directory, or a port of that host.
// - A SUB there gets three frames an event: topic "<kind>.<qualifier>$", a binary header, the event in msgpack.
//   Subscribing to a prefix of the topic filters. Several events of one topic may come as a bundle, in one message.
// - A subscription to "ready.<client id>$" is answered by the bus: those made before it are in force then.
// A publisher in direct mode ("direct+ipc://..." or "direct+tcp://...") has no bus: events come from there at once.
// This reader takes part in nothing else: no replay, no receipt; header.topicSeq shows whether it missed something.

import { randomBytes } from "node:crypto";
import process from "node:process";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer, Subscriber } from "zeromq";
import { plainRecords, toJson } from "./records.mjs";

const WIRE_VERSION = 4;
const HEADER_BYTES = 64;
const KINDS = [
  "run_start", "phases_configured", "phase_start", "phase_progress", "phase_sending_complete", "phase_timeout",
  "phase_complete", "records", "run_complete", "summary", "receipt", "drop",
];
const HELLO_MS = 500;

// Return how to connect to the named socket of the bus at an address.
function endpoint(address, { ipc_name: name, tcp_port: port }) {
  const [scheme, place] = address.replace(/^(direct\+)?(group\+)?/, "").split("://");
  return scheme === "ipc" ? `ipc://${place}/${name}` : `tcp://${place.replace(/:\d+$/, "")}:${port}`;
}

function portOf(address) {
  return Number(/:(\d+)$/.exec(address)?.[1] ?? 0);
}

// Ask the bus where it publishes events; wait for it if it is not there yet.
async function findEvents(address, clientId) {
  const dealer = new Dealer({ receiveTimeout: HELLO_MS, linger: 200 });
  dealer.connect(endpoint(address, { ipc_name: "control.ipc", tcp_port: portOf(address) }));
  const hello = { op: "hello", client_id: clientId, role: "client", name: "node reader", wire_version: WIRE_VERSION };
  try {
    for (;;) {
      await dealer.send(encode(hello));
      try {
        for await (const [frame] of dealer) {
          const reply = decode(frame, { useBigInt64: true });
          if (reply.op === "welcome") {
            await dealer.send(encode({ op: "goodbye", client_id: clientId }));
            return endpoint(address, reply.events);
          }
        }
      } catch (error) {
        if (error.code !== "EAGAIN") throw error;
      }
    }
  } finally {
    dealer.close();
  }
}

// The header's 64 bytes, little-endian; the last 8 are of no use here.
function parseHeader(frame) {
  const version = frame.readUInt8(0);
  if (version !== WIRE_VERSION) throw new Error(`wire version ${version} is not ${WIRE_VERSION}`);
  return {
    stream: frame.subarray(1, 4).toString("hex"),
    records: frame.readUInt32LE(4),
    source: frame.subarray(8, 24).toString("hex"),
    sourceSeq: frame.readBigUInt64LE(24),
    topicSeq: frame.readBigUInt64LE(32),
    offset: frame.readBigUInt64LE(40),
    eventNumber: frame.readBigUInt64LE(48),
  };
}

// Return header and payload of each event of a message: of a bundle several. Behind the header of its first event are the
// sizes of the payloads, which follow one another in the third frame, after three bytes that begin a msgpack array.
function eventsOf(headerFrame, payload) {
  const first = parseHeader(headerFrame);
  if (headerFrame.length === HEADER_BYTES) return [{ header: first, body: payload }];
  const placed = first.offset > 0n; // a publisher in direct mode places nothing
  const events = [];
  let end = 3;
  for (let at = HEADER_BYTES; at < headerFrame.length; at += 4) {
    const number = BigInt(events.length);
    const begin = end;
    end += headerFrame.readUInt32LE(at);
    const header = {
      ...first,
      sourceSeq: first.sourceSeq + number,
      topicSeq: first.topicSeq + number,
      offset: placed ? first.offset + number : 0n,
      eventNumber: placed ? first.eventNumber + number : 0n,
    };
    events.push({ header, body: payload.subarray(begin, end) });
  }
  return events;
}

async function main() {
  const address = process.env.PHASE_BUS_ADDRESS;
  if (!address) throw new Error("set PHASE_BUS_ADDRESS to the address of a bus");
  const prefixes = process.argv.slice(2);
  const clientId = randomBytes(16).toString("hex");
  const direct = address.startsWith("direct+");
  const subscriber = new Subscriber({ receiveHighWaterMark: 0, linger: 0 });
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => subscriber.close());
  const listening = () => process.stderr.write(`listening at ${address}\n`);

  subscriber.subscribe(...(prefixes.length ? prefixes : KINDS.map((kind) => `${kind}.`)));
  subscriber.connect(
    direct
      ? endpoint(address, { ipc_name: "events.ipc", tcp_port: portOf(address) })
      : await findEvents(address, clientId),
  );
  const ready = `ready.${clientId}$`;
  if (direct) listening();
  else subscriber.subscribe(ready);

  const lastSeqs = new Map();
  for await (const [topicFrame, headerFrame, payload] of subscriber) {
    const topic = topicFrame.toString();
    if (topic === ready) {
      listening();
      continue;
    }
    for (const { header, body } of eventsOf(headerFrame, payload)) {
      const stream = `${header.source} ${topic}`;
      const missed = header.topicSeq - (lastSeqs.get(stream) ?? header.topicSeq - 1n) - 1n;
      if (missed > 0n) process.stderr.write(`missed ${missed} events on ${topic}\n`);
      lastSeqs.set(stream, header.topicSeq);
      if (!KINDS.includes(topic.split(".", 1)[0])) continue; // newer than this reader
      const event = decode(body, { useBigInt64: true });
      process.stdout.write(`${toJson(event.kind === "records" ? plainRecords(event) : event)}\n`);
    }
  }
}

main().catch((error) => {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 2;
});
