// Sends notifications in every way that Peal has, and follows what becomes of them.
//
//   npm install
//   source …/peal.env        # `cargo demo` prints its path
//   node notify.js

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { jetstream } from "@nats-io/jetstream";
import { connect, nkeyAuthenticator } from "@nats-io/transport-node";

const env = process.env;
const app = env.PEAL_APP;

// Asks a gateway. An answer other than 2xx names the field and the rule.
async function http(method, path, body) {
  const answer = await fetch(env.PEAL_URL + path, {
    method,
    headers: { authorization: `Bearer ${env.PEAL_KEY}`, "content-type": "application/json" },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(15_000),
  });
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  return answer.json();
}

// The event id names what happened. However often it is sent, and by whatever way, it is delivered once.
const notification = (event_id, title) => ({ event_id, to: { recipients: ["ann"] }, class: "urgent", push: { title } });

const order = randomUUID();
const eventIds = ["paid", "packed", "shipped"].map((what) => `order-${order}-${what}`);
const [paid, packed, shipped] = eventIds;

// 1. HTTP. 202: stored.
const accepted = await http("POST", "/v1/notifications", notification(paid, "Your order is paid"));
console.log("http     accepted", accepted.event_id);

// 2. JetStream, as a service in the app's own NATS account. Acknowledged: stored, also while no gateway runs. A message that
// breaks a rule becomes a dead letter.
const nc = await connect({
  servers: env.NATS_URL,
  // With a .creds file: credsAuthenticator(readFileSync(env.NATS_CREDS)).
  authenticator: nkeyAuthenticator(readFileSync(env.NATS_NKEY)),
  // The certificate is for servers that ask for one.
  tls: { caFile: env.NATS_CA, certFile: env.NATS_CERT, keyFile: env.NATS_KEY },
});
const body = JSON.stringify(notification(packed, "Your order is packed"));
const stored = await jetstream(nc).publish(`send.${app}`, body, { msgID: packed });
console.log("publish  stored in", stored.stream);

// 3. A request. The answer is that of HTTP.
const request = JSON.stringify(notification(shipped, "Your order is on its way"));
const answer = await nc.request(`send.${app}.now`, request, { timeout: 15_000 });
if (answer.headers?.get("Nats-Service-Error-Code")) throw new Error(`request  refused ${answer.string()}`);
console.log("request  accepted", answer.json().event_id);

// 4. The status feed, a durable consumer: each batch goes to one of the app's services, again until acknowledged.
const feed = await jetstream(nc, { domain: "peal" }).consumers.get("RECEIPTS", `svc_${app}`);
const waiting = new Set(eventIds);
const names = new Map();
const delivered = new Set();
const giveUp = setTimeout(() => { throw new Error(`not delivered: ${[...waiting]}`); }, 60_000);
for await (const message of await feed.consume()) {
  const batch = message.json();
  // Gateways write which notification an event became, workers what became of it, in any order.
  for (const each of batch.accepted ?? []) names.set(each.notification, each.event_id);
  for (const each of batch.receipts ?? []) if (each.state === "delivered") delivered.add(each.notification);
  message.ack();
  for (const notification of delivered) {
    const eventId = names.get(notification);
    if (waiting.delete(eventId)) console.log("feed     delivered", eventId);
  }
  if (waiting.size === 0) break;
}
clearTimeout(giveUp);
await nc.drain();

// 5. The status by event id, whichever way it was sent.
for (const eventId of eventIds) {
  const { notifications } = await http("GET", `/v1/notifications?event_id=${eventId}`);
  for (const delivery of notifications.flatMap((status) => status.deliveries)) {
    console.log("status  ", eventId, delivery.recipient, delivery.provider, delivery.state);
  }
}
