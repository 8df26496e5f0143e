//! The contract of services that speak NATS themselves, as an `AsyncAPI` 3.0 document: written from the code that
//! reads and writes the messages, kept in the repository as `docs/asyncapi.yaml`.

mod yaml;

use serde_json::{Map, Value, json};
use shared::{
    contract::schema,
    id::{AppId, Region},
    nats::{
        accounts::{self, FEED_DOMAIN},
        envelope::{
            ACCEPTED_AT, ADDRESS, ATTEMPT, BATCH, DETAIL, EVENT_ID, INDEX, INTAKE_SEQUENCE, ORIGIN, REASON, SUBJECT,
        },
        roles::Role,
        subject,
        topology::{self, RECEIPTS},
    },
    receipt::Batch,
    telemetry::trace::TRACEPARENT,
};
use utoipa::{PartialSchema, ToSchema};

use crate::{
    doors::{
        problem::Document,
        send::{ManyResponse, SendResponse},
    },
    intake::request::{ManyRequest, SendRequest},
};

/// The document, as YAML.
pub fn document() -> String {
    let head = "# Written by `cargo run -p peal-gateway -- asyncapi`; a test compares it with the code.\n";
    let contract = contract();
    // In the order in which people read it; the members of a JSON value have none of their own.
    let sections = [
        "asyncapi",
        "info",
        "servers",
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
            "description": "A service may publish notifications to JetStream, or send them as NATS requests, instead of HTTP \
                requests. All are checked by the same rules, get the same receipts and are part of the caller's trace. The \
                page docs/contract.md lists every member, also those that are not built yet.",
            "license": { "name": "Apache-2.0" },
        },
        "servers": servers(),
        "defaultContentType": "application/json",
        "channels": channels(),
        "operations": operations(),
        "components": { "messages": messages(), "schemas": schemas(), "securitySchemes": security_schemes() },
    })
}

/// Where services connect. Every mesh has servers of its own.
fn servers() -> Value {
    json!({
        "region": {
            "host": "{host}:{port}",
            "protocol": "nats",
            "title": "The servers of the service's own region",
            "description": "TLS is required. They are the only ones that a service needs to know. Each app with services has an \
                account of its own, in which it finds the channels below. Inboxes have the usual prefix, _INBOX.",
            "variables": {
                "host": { "description": "The region's nats-server, or one of three.", "default": "nats-eu.internal" },
                "port": { "description": "PEAL_PORT of its configuration.", "default": "4222" },
            },
            "security": [
                { "$ref": "#/components/securitySchemes/nkey" },
                { "$ref": "#/components/securitySchemes/creds" },
            ],
        },
        "own": {
            "host": "localhost:4222",
            "protocol": "nats",
            "title": "The app's own server",
            "description": "A leaf node of the region, if the app runs one (deploy/nats/app.conf). The same channels; whom it \
                lets in is up to the app.",
        },
    })
}

fn security_schemes() -> Value {
    json!({
        "nkey": {
            "type": "asymmetricEncryption",
            "description": "The seed of the app's NKey, with which the client signs a nonce (`peal nkey` makes it). Servers may \
                ask for a client's certificate as well.",
        },
        "creds": {
            "type": "asymmetricEncryption",
            "description": "The app's .creds file, a user JWT with its NKey, where servers have an operator (`peal roles --jwt`). \
                Servers may ask for a client's certificate as well.",
        },
    })
}

fn channels() -> Value {
    let region = || -> Region { "region".parse().expect("a fixed word is a region") };
    let app = || -> AppId { "app".parse().expect("a fixed word is an app") };
    let account = app();
    let origin: Region = "origin".parse().expect("a fixed word is a region");
    let inbox = Role::Service(app()).inbox();
    let consumer = topology::feed_consumer(&app()).replace("app", "{app}");
    let feed = accounts::feed_next(&app()).replace("app", "{app}");
    json!({
        "notifications": {
            "address": template(&subject::send(account.as_str())),
            "title": "Notifications to send",
            "description": "The intake of the service's app, in its own region: the homes of recipients are looked up. A \
                message that JetStream has acknowledged is accepted, whatever fails afterwards. What breaks a rule \
                becomes a dead letter with the reason `refused`, and has a receipt. At most 65,536 bytes with headers.",
            "parameters": parameters(&["app"]),
            "messages": { "notification": reference("messages", "Notification") },
        },
        "requests": {
            "address": template(&subject::send_now(account.as_str())),
            "title": "Notifications to send, with an answer",
            "description": "The NATS micro service `peal-send`. At most 65,536 bytes with headers.",
            "parameters": parameters(&["app"]),
            "messages": { "notification": reference("messages", "Notification") },
        },
        "answers": {
            "address": null,
            "title": "The reply subject of a request",
            "messages": { "answer": reference("messages", "Answer"), "problem": reference("messages", "Problem") },
        },
        "acknowledgements": {
            "address": null,
            "title": "The publisher's reply subject",
            "description": format!(
                "JetStream answers on the reply subject of the published message. It begins with {inbox}, the usual prefix: a \
                 service may listen to nothing else but the receipts and dead letters of its app, as they come.",
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
        "feed": {
            "address": feed,
            "title": "What happened, durably",
            "description": format!(
                "The status feed of the app: the consumer {consumer} of the stream {RECEIPTS} in the JetStream domain \
                 `{FEED_DOMAIN}`, which any JetStream client reads as a durable pull consumer. It brings all receipts of the app \
                 in this region, of members of topics too. A batch goes to one of the app's services, and comes again if it \
                 is not acknowledged within 30 seconds.",
            ),
            "parameters": parameters(&["app"]),
            "messages": { "pull": reference("messages", "Pull") },
        },
        "feedBatches": {
            "address": null,
            "title": "The reply subject of a pull",
            "messages": { "batch": reference("messages", "ReceiptBatch") },
        },
        "deadLetters": {
            "address": template(&subject::dead_refused(&region(), &app())),
            "title": "What could not be delivered",
            "description": "Kept for weeks in the stream DEAD: the message as it came, and why. What a \
                gateway refused has the channel `refused`. Messages whose subject could not be read have the channel \
                `unreadable` and the app `unknown`.",
            "parameters": parameters(&["channel", "region", "app"]),
            "messages": { "deadLetter": reference("messages", "DeadLetter") },
        },
    })
}

/// A subject of fixed words with the words made places to fill in.
fn template(subject: &str) -> String {
    let place = |token: &str| match token {
        "refused" => "{channel}".to_owned(),
        "region" | "origin" | "app" => format!("{{{token}}}"),
        fixed => fixed.to_owned(),
    };
    subject.split('.').map(place).collect::<Vec<_>>().join(".")
}

fn parameters(names: &[&str]) -> Value {
    let of = |name: &str| match name {
        "channel" => json!({ "description": "The channel, or `refused` or `unreadable`." }),
        "region" => {
            json!({ "description": "Where it happened: the recipient's home. 1 to 32 of a-z, 0-9 and -." })
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
        "takeNotifications": {
            "action": "receive",
            "channel": reference_channel("notifications"),
            "title": "Publish notifications",
            "description": "Wait for the acknowledgement: only then is the message stored. Without one, or with an error, \
                publish again with the same event id; nothing is sent twice.",
            "reply": { "channel": reference_channel("acknowledgements") },
        },
        "answerRequests": {
            "action": "receive",
            "channel": reference_channel("requests"),
            "title": "Send notifications, and get the answer",
            "reply": { "channel": reference_channel("answers") },
        },
        "writeReceipts": {
            "action": "send",
            "channel": reference_channel("receipts"),
            "title": "Read what happened",
            "description": "At least once: a batch may come again with the same Nats-Msg-Id and the same content.",
        },
        "answerPulls": {
            "action": "receive",
            "channel": reference_channel("feed"),
            "title": "Follow what happened",
            "reply": { "channel": reference_channel("feedBatches") },
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

fn example(event: &str) -> Value {
    json!({
        "event_id": event,
        "to": { "recipients": ["ann"] },
        "push": { "title": "Shipped", "body": "Your order is on its way." },
    })
}

fn messages() -> Value {
    json!({
        "Notification": {
            "title": "One notification, or many",
            "payload": { "oneOf": [reference("schemas", &SendRequest::name()), reference("schemas", &ManyRequest::name())] },
            "headers": {
                "type": "object",
                "description": "The event id of a single notification may stand in `ce-id` or `Nats-Msg-Id`.",
                "properties": {
                    "Nats-Msg-Id": {
                        "type": "string", "minLength": 1, "maxLength": 255,
                        "description": "What JetStream recognises a repetition by, in the intake of this app.",
                    },
                    "ce-id": text("CloudEvents: the event id. Other headers of CloudEvents are ignored."),
                    TRACEPARENT: text("W3C trace context of the publisher. Any case of the name is read."),
                },
            },
            "examples": [
                { "name": "one", "payload": example("order-42-shipped") },
                { "name": "many", "payload": { "notifications": [example("order-42-shipped"), example("order-43-shipped")] } },
            ],
        },
        "Answer": {
            "title": "What was accepted",
            "payload": { "oneOf": [reference("schemas", &SendResponse::name()), reference("schemas", &ManyResponse::name())] },
        },
        "Problem": {
            "title": "Why it was not accepted",
            "payload": reference("schemas", &Document::name()),
            "headers": {
                "type": "object",
                "required": ["Nats-Service-Error-Code", "Nats-Service-Error"],
                "properties": {
                    "Nats-Service-Error-Code": number("The status of the problem."),
                    "Nats-Service-Error": text("The code of the problem."),
                },
            },
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
        "Pull": {
            "title": "A pull, as JetStream clients send it",
            "payload": {
                "type": "object",
                "properties": {
                    "batch": { "type": "integer", "description": "How many batches are wanted." },
                    "expires": { "type": "integer", "description": "How long to wait for them, in nanoseconds." },
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
            "title": "What could not be delivered",
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
                    INTAKE_SEQUENCE: number("Of what was refused: the sequence of the message in the intake."),
                    INDEX: number("Of what was refused: its place in the message, from 0."),
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
        (SendRequest::name().into(), SendRequest::schema()),
        (ManyRequest::name().into(), ManyRequest::schema()),
        (SendResponse::name().into(), SendResponse::schema()),
        (ManyResponse::name().into(), ManyResponse::schema()),
        (Document::name().into(), Document::schema()),
        (Batch::name().into(), Batch::schema()),
    ];
    SendRequest::schemas(&mut all);
    ManyRequest::schemas(&mut all);
    ManyResponse::schemas(&mut all);
    Document::schemas(&mut all);
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
