//! The contract of services that speak NATS themselves, as an `AsyncAPI` 3.0 document: written from the code that
//! reads and writes the messages, kept in the repository as `docs/asyncapi.yaml`.

mod yaml;

use serde_json::{Map, Value, json};
use shared::{
    body::Members as Body,
    channel::{Channel, Class},
    contract::schema,
    id::{AppId, Region},
    nats::{
        envelope::{ACCEPTED_AT, ADDRESS, ATTEMPT, BATCH, DETAIL, EVENT_ID, ORIGIN, REASON, SUBJECT},
        roles::Role,
        subject::{self, Lane},
    },
    receipt::Batch,
    telemetry::trace::TRACEPARENT,
};
use utoipa::{PartialSchema, ToSchema};

/// The document, as YAML.
pub fn document() -> String {
    let head = "# Written by `cargo run -p peal-gateway -- asyncapi`; a test compares it with the code.\n";
    let contract = contract();
    // In the order in which people read it; the members of a JSON value have none of their own.
    let sections = [
        "asyncapi",
        "info",
        "defaultContentType",
        "channels",
        "operations",
        "components",
    ];
    let texts = sections
        .iter()
        .map(|name| yaml::write(&json!({ *name: contract[*name] })));
    std::iter::once(head.to_owned()).chain(texts).collect()
}

/// The document itself.
fn contract() -> Value {
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Peal over NATS",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A service may publish jobs to JetStream itself instead of sending requests to a gateway. \
                Both are checked by the same rules, get the same receipts and are part of the caller's trace. The page \
                docs/contract.md lists every member, also those that are not built yet.",
            "license": { "name": "Apache-2.0" },
        },
        "defaultContentType": "application/json",
        "channels": channels(),
        "operations": operations(),
        "components": { "messages": messages(), "schemas": schemas() },
    })
}

fn channels() -> Value {
    let region = || -> Region { "region".parse().expect("a fixed word is a region") };
    let app = || -> AppId { "app".parse().expect("a fixed word is an app") };
    let lane = Lane {
        channel: Channel::Push,
        region: region(),
        class: Class::Normal,
        app: app(),
    };
    let origin: Region = "origin".parse().expect("a fixed word is a region");
    let inbox = template(&Role::FormerService(region(), app()).inbox());
    json!({
        "jobs": {
            "address": template(&lane.notify()),
            "title": "Work to do",
            "description": "One message asks for one notification to one recipient, or to the members of a topic who \
                live in the region that the subject names. Publish in any region: the region's own stream takes it and \
                acknowledges; if the recipient lives elsewhere it is forwarded. A message that breaks a rule becomes a dead letter and has a receipt that says why.",
            "parameters": parameters(&["channel", "region", "class", "app"]),
            "messages": { "job": reference("messages", "Job"), "broadcast": reference("messages", "Broadcast") },
        },
        "acknowledgements": {
            "address": null,
            "title": "The publisher's reply subject",
            "description": format!(
                "JetStream answers on the reply subject of the published message. It begins with {inbox}, which clients \
                 call the prefix of inboxes: a service may listen to nothing else but the receipts and dead letters of \
                 its app, as they come.",
            ),
            "messages": { "acknowledgement": reference("messages", "Acknowledgement") },
        },
        "receipts": {
            "address": template(&subject::receipt(&region(), &origin, &app())),
            "title": "What happened",
            "description": "Kept for days in the stream RECEIPTS. A region holds what happened in it, and what \
                happened elsewhere to notifications that it accepted. Of a broadcast it holds what its slices became \
                elsewhere.",
            "parameters": parameters(&["region", "origin", "app"]),
            "messages": { "batch": reference("messages", "ReceiptBatch") },
        },
        "memberReceipts": {
            "address": template(&subject::receipt_of_members(&region(), &app())),
            "title": "What happened to members of a topic",
            "description": "First attempts at the jobs of a broadcast, in the region where they were made and nowhere \
                else. Kept as the other receipts, and written in the same way.",
            "parameters": parameters(&["region", "app"]),
            "messages": { "batch": reference("messages", "ReceiptBatch") },
        },
        "deadLetters": {
            "address": template(&lane.dead()),
            "title": "What could not be delivered",
            "description": "Kept for weeks in the stream DEAD: the message as it came, and why. Messages whose \
                subject could not be read have the channel `unreadable` and the app `unknown`.",
            "parameters": parameters(&["channel", "region", "app"]),
            "messages": { "deadLetter": reference("messages", "DeadLetter") },
        },
    })
}

/// A subject of fixed words with the words made places to fill in.
fn template(subject: &str) -> String {
    let place = |token: &str| match token {
        "push" => "{channel}".to_owned(),
        "normal" => "{class}".to_owned(),
        "region" | "origin" | "app" => format!("{{{token}}}"),
        fixed => fixed.to_owned(),
    };
    subject.split('.').map(place).collect::<Vec<_>>().join(".")
}

fn parameters(names: &[&str]) -> Value {
    let words = |all: Vec<&'static str>| json!(all);
    let of = |name: &str| match name {
        "channel" => json!({
            "description": "The way it takes.",
            "enum": words(Channel::CARRIED.iter().map(|channel| channel.as_str()).collect()),
        }),
        "class" => json!({
            "description": "The lane. Classes do not wait for each other.",
            "enum": words(Class::ALL.iter().map(|class| class.as_str()).collect()),
            "default": Class::default().as_str(),
        }),
        "region" => {
            json!({ "description": "Where the work is done: the recipient's home. 1 to 32 of a-z, 0-9 and -." })
        }
        "origin" => json!({ "description": "The region that accepted the notification." }),
        _ => json!({ "description": "The tenant. 1 to 32 of a-z, 0-9 and -." }),
    };
    names
        .iter()
        .map(|name| ((*name).to_owned(), of(name)))
        .collect::<Map<_, _>>()
        .into()
}

fn operations() -> Value {
    json!({
        "takeJob": {
            "action": "receive",
            "channel": reference_channel("jobs"),
            "title": "Publish a job",
            "description": "Wait for the acknowledgement: only then is the job stored. Without one, or with an error, \
                publish again with the same Nats-Msg-Id; nothing is sent twice.",
            "reply": { "channel": reference_channel("acknowledgements") },
        },
        "writeReceipts": {
            "action": "send",
            "channel": reference_channel("receipts"),
            "title": "Read what happened",
            "description": "At least once: a batch may come again with the same Nats-Msg-Id and the same content.",
        },
        "writeMemberReceipts": {
            "action": "send",
            "channel": reference_channel("memberReceipts"),
            "title": "Read what happened to members of a topic",
        },
        "writeDeadLetter": {
            "action": "send",
            "channel": reference_channel("deadLetters"),
            "title": "Read what could not be delivered",
        },
    })
}

fn text(what: &str) -> Value {
    json!({ "type": "string", "description": what })
}

fn number(what: &str) -> Value {
    json!({ "type": "string", "pattern": "^[0-9]+$", "description": what })
}

/// The headers of what is to be delivered.
fn work_headers(description: &str) -> Value {
    json!({
        "type": "object",
        "description": description,
        "properties": {
            "Nats-Msg-Id": {
                "type": "string", "minLength": 1, "maxLength": 255,
                "description": "What JetStream recognises a repetition by, and the event id if the body has none.",
            },
            TRACEPARENT: text("W3C trace context of the publisher. Any case of the name is read."),
            ACCEPTED_AT: number("When it was accepted, in milliseconds since 1970. Default: when JetStream stored it."),
            ORIGIN: text("The region that accepted it. Default: the region that works on it."),
        },
    })
}

fn messages() -> Value {
    json!({
        "Job": {
            "title": "One notification for one recipient",
            "payload": reference("schemas", "Body"),
            "headers": work_headers("Nats-Msg-Id is required unless the body has an event_id."),
            "examples": [{
                "name": "smallest",
                "headers": { "Nats-Msg-Id": "order-42-shipped" },
                "payload": { "recipient": "ann", "push": { "title": "Shipped", "body": "Your order is on its way." } },
            }],
        },
        "Broadcast": {
            "title": "One notification for the members of a topic in one region",
            "payload": reference("schemas", "Body"),
            "headers": work_headers(
                "As of a job. To reach the members of every region, publish one message for each with the same event_id in \
                the body and a Nats-Msg-Id of its own.",
            ),
            "examples": [{
                "name": "smallest",
                "headers": { "Nats-Msg-Id": "match-7-goal-1:eu" },
                "payload": { "event_id": "match-7-goal-1", "topic": "football", "push": { "title": "Goal" } },
            }],
        },
        "Acknowledgement": {
            "title": "JetStream's own acknowledgement",
            "payload": {
                "type": "object",
                "properties": {
                    "stream": text("The stream that has it."),
                    "seq": { "type": "integer", "description": "Its place there." },
                    "duplicate": { "type": "boolean", "description": "The stream had it already." },
                    "error": {
                        "type": "object",
                        "description": "It was not stored. Code 10077 or 10047: the stream is full; publish again later.",
                    },
                },
            },
        },
        "ReceiptBatch": {
            "title": "Many records of what happened",
            "payload": reference("schemas", "Batch"),
            "headers": {
                "type": "object",
                "required": ["Nats-Msg-Id", BATCH],
                "properties": {
                    "Nats-Msg-Id": text("The same as Peal-Batch."),
                    BATCH: text("The process that wrote it, a colon, and the number of the batch."),
                },
            },
        },
        "DeadLetter": {
            "title": "A job that could not be delivered",
            "description": "The payload is what was published, whatever it was.",
            "payload": {},
            "headers": {
                "type": "object",
                "required": [REASON],
                "properties": {
                    REASON: text("Why: a stable word."),
                    DETAIL: text("What is wrong with it, for people."),
                    SUBJECT: text("The subject on which it first came."),
                    EVENT_ID: text("The event id, if it was read."),
                    ATTEMPT: number("How many attempts were made."),
                    ADDRESS: text("The address that could not be reached, as an id."),
                    ACCEPTED_AT: number("When it was accepted, in milliseconds since 1970."),
                    ORIGIN: text("The region that accepted it."),
                    TRACEPARENT: text("The trace in which it was given up."),
                },
            },
        },
    })
}

/// Every schema of the payloads, by name.
fn schemas() -> Value {
    let mut all = vec![
        (Body::name().into(), Body::schema()),
        (Batch::name().into(), Batch::schema()),
    ];
    Body::schemas(&mut all);
    Batch::schemas(&mut all);
    all.into_iter()
        .map(|(name, schema)| {
            let mut document = serde_json::to_value(schema).expect("schemas always serialize");
            schema::complete(&name, &mut document);
            (name, document)
        })
        .collect::<Map<String, Value>>()
        .into()
}

fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

fn reference_channel(name: &str) -> Value {
    json!({ "$ref": format!("#/channels/{name}") })
}
