//! `peal send`: sends a notification, and waits for its deliveries if asked to.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    path::PathBuf,
    time::Duration,
};

use async_nats::{Message, service::NATS_SERVICE_ERROR_CODE};
use clap::Args;
use reqwest::Method;
use serde_json::{Map, Value, json};
use shared::{
    channel::Class,
    id::AppId,
    invalid::Invalid,
    nats::{
        connect::{self, Nats},
        refusal::unless_refused,
        roles::Role,
        subject,
    },
    plan::{Plan, Step},
    receipt::State,
};
use tokio::time::{Instant, sleep};

use super::{
    Answer, Failure,
    api::{self, Api, ApiArgs, OptionalApiArgs, text},
    table::Table,
};

/// How often the status is queried while waiting.
const STATUS_POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct SendArgs {
    #[command(flatten)]
    api: OptionalApiArgs,
    #[command(flatten)]
    door: DoorArgs,
    /// A recipient; may be repeated.
    #[arg(long, value_name = "RECIPIENT")]
    to: Vec<String>,
    /// All members of this topic.
    #[arg(long, conflicts_with = "to")]
    topic: Option<String>,
    /// The title of the push.
    #[arg(long)]
    title: Option<String>,
    /// The text of the push.
    #[arg(long)]
    body: Option<String>,
    /// A value for the receiving application; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    data: Vec<(String, String)>,
    /// The class, which decides the lane: urgent, normal or bulk.
    #[arg(long)]
    class: Option<Class>,
    /// The category, to which the recipients' preferences apply.
    #[arg(long)]
    category: Option<String>,
    /// Your id of the event. Two requests with the same event id are one notification.
    #[arg(long)]
    event_id: Option<String>,
    /// The time to live; a delivery that is not made by then expires.
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
    /// Whether it ends at the provider that sends nothing; with a test key it does unless this is false.
    #[arg(long, value_name = "BOOL")]
    test: Option<bool>,
    /// Which channels are used, of which the file of --json holds the content: a mode (all, first or fallback) and the channels
    /// in order, such as fallback:push,sms,email.
    #[arg(long, value_name = "MODE:CHANNELS", value_parser = plan)]
    plan: Option<Plan>,
    /// A file with the request as JSON, or - for standard input; other flags override its members.
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Wait until every delivery is in a final state; exit with 1 unless all were delivered.
    #[arg(long)]
    wait: bool,
    /// How long to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// The door for services, instead of HTTP. Waiting for deliveries needs a gateway's URL and an API key too.
#[derive(Debug, Args)]
struct DoorArgs {
    /// Send over NATS, to the servers of this region.
    #[arg(long, value_name = "URL", requires = "app")]
    nats: Option<String>,
    /// The app that sends.
    #[arg(long, requires = "nats")]
    app: Option<AppId>,
    /// The file with the seed of the service's `NKey`.
    #[arg(long, value_name = "FILE", env = "NATS_NKEY")]
    nkey: Option<PathBuf>,
    /// The file with the service's credentials, where servers are in operator mode.
    #[arg(long, value_name = "FILE", env = "NATS_CREDS", conflicts_with = "nkey")]
    creds: Option<PathBuf>,
    /// The file with the certificates of the authority that signed the servers' certificates.
    #[arg(long, value_name = "FILE", env = "NATS_CA")]
    ca: Option<PathBuf>,
    /// The file with a certificate, for servers that ask for one.
    #[arg(long, value_name = "FILE", env = "NATS_CERT", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// The file with the private key of the certificate.
    #[arg(long, value_name = "FILE", env = "NATS_KEY", requires = "cert")]
    cert_key: Option<PathBuf>,
}

impl DoorArgs {
    /// Sends a request to the micro service, and returns its answer.
    async fn send(&self, url: &str, app: &AppId, request: &Value) -> Result<Value, Failure> {
        let nats = Nats {
            url: url.to_owned(),
            nkey_file: self.nkey.clone(),
            creds_file: self.creds.clone(),
            ca_file: self.ca.clone(),
            cert_file: self.cert.clone(),
            key_file: self.cert_key.clone(),
        };
        let role = Role::Service(app.clone());
        let client = connect::connect(&nats, &role, "peal").await?;
        let subject = subject::send_now(app.as_str());
        let asking = client.request(subject.clone(), request.to_string().into());
        let answer = unless_refused(&client, move |refused| refused == subject, asking).await;
        let answer = answer.map_err(|error| Failure::Door(error.to_string()))?;
        let answer = answer.map_err(|error| Failure::Door(error.to_string()))?;
        api::read(answer_status(&answer), &answer.payload)
    }
}

/// The status that the answer to a request over HTTP would have.
fn answer_status(answer: &Message) -> u16 {
    let headers = answer.headers.as_ref();
    let code = headers.and_then(|headers| headers.get(NATS_SERVICE_ERROR_CODE)?.as_str().parse().ok());
    code.unwrap_or(202)
}

/// Reads `<mode>:<channel>,<channel>`.
fn plan(text: &str) -> Result<Plan, String> {
    let (mode, channels) = text.split_once(':').ok_or("must be MODE:CHANNEL,CHANNEL")?;
    let step = |channel: &str| channel.parse().map(Step::of);
    let steps: Result<_, Invalid> = channels.split(',').map(step).collect();
    Ok(Plan {
        mode: mode.parse().map_err(|invalid: Invalid| invalid.to_string())?,
        steps: Some(steps.map_err(|invalid| invalid.to_string())?),
    })
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(super) async fn run(args: SendArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let request = args.request()?;
    let api = args.api.given().map(ApiArgs::open).transpose()?;
    let need_api = || Failure::Arguments("--url and --key, or --nats with --app, must be given".to_owned());
    let answer = match (&args.door.nats, &args.door.app, &api) {
        (Some(url), Some(app), _) => args.door.send(url, app, &request).await?,
        (_, _, Some(api)) => {
            let path = "/v1/notifications";
            api.request(Method::POST, path, &[], Some(&request)).await?
        }
        _ => return Err(need_api()),
    };
    let id = text(&answer, "notification_id");
    writeln!(out, "{id}")?;
    if !args.wait {
        return Ok(Answer::Yes);
    }
    out.flush()?;
    let api = api.ok_or_else(need_api)?;
    wait(&api, &id, Duration::from_secs(args.timeout), out).await
}

impl SendArgs {
    fn request(&self) -> Result<Value, Failure> {
        let mut request = match self.json.as_deref().map(read).transpose()? {
            None => Map::new(),
            Some(Value::Object(request)) => request,
            Some(_) => return Err(Failure::Arguments("--json: must be an object".to_owned())),
        };
        if !self.to.is_empty() {
            request.insert("to".to_owned(), json!({ "recipients": self.to }));
        }
        if let Some(topic) = &self.topic {
            request.insert("to".to_owned(), json!({ "topic": topic }));
        }
        let class = self.class.map(|class| json!(class));
        let members = [
            ("class", class),
            ("category", self.category.as_ref().map(|text| json!(text))),
            ("test", self.test.map(|test| json!(test))),
            ("event_id", self.event_id.as_ref().map(|text| json!(text))),
            ("plan", self.plan.as_ref().map(|plan| json!(plan))),
        ];
        override_members(&mut request, members);
        let data: Map<_, _> = self
            .data
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        let content = [
            ("title", self.title.as_ref().map(|text| json!(text))),
            ("body", self.body.as_ref().map(|text| json!(text))),
            ("data", (!data.is_empty()).then_some(Value::Object(data))),
            ("ttl", self.ttl.map(|ttl| json!(ttl))),
        ];
        if content.iter().any(|(_, value)| value.is_some()) {
            let push = request.entry("push").or_insert_with(|| json!({}));
            let push = push.as_object_mut();
            override_members(
                push.ok_or_else(|| Failure::Arguments("push: must be an object".to_owned()))?,
                content,
            );
        }
        Ok(Value::Object(request))
    }
}

/// Sets the members that have a value, and keeps the others.
fn override_members<const N: usize>(object: &mut Map<String, Value>, members: [(&str, Option<Value>); N]) {
    let given = members
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    object.extend(given);
}

fn read(file: &str) -> Result<Value, Failure> {
    let text = if file == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    let text = text.map_err(|error| Failure::Arguments(format!("--json: cannot read {file}: {error}")))?;
    serde_json::from_str(&text).map_err(|error| Failure::Arguments(format!("--json: {error}")))
}

async fn wait(api: &Api, id: &str, timeout: Duration, out: &mut impl Write) -> Result<Answer, Failure> {
    let deadline = Instant::now() + timeout;
    let path = format!("/v1/notifications/{id}");
    loop {
        let status = match api.request(Method::GET, &path, &[], None).await {
            Ok(status) => status,
            // The gateway's record is written shortly after the notification is stored.
            Err(Failure::Refused(refused)) if refused.status == 404 => Value::Null,
            Err(failure) => return Err(failure),
        };
        let done = status.get("state").and_then(Value::as_str) == Some("done");
        if done || Instant::now() >= deadline {
            let delivered = show(&status, out)?;
            if !done {
                writeln!(out, "not done after {} s", timeout.as_secs())?;
            }
            return Ok(if done && delivered { Answer::Yes } else { Answer::No });
        }
        sleep(STATUS_POLL).await;
    }
}

/// Shows every delivery. Returns whether all were delivered.
fn show(status: &Value, out: &mut impl Write) -> Result<bool, Failure> {
    let deliveries = status.get("deliveries").and_then(Value::as_array);
    let mut table = Table::new([
        "recipient",
        "region",
        "channel",
        "provider",
        "state",
        "reason",
        " attempts",
    ]);
    let (mut delivered, mut by_steps) = (true, BTreeMap::new());
    for delivery in deliveries.into_iter().flatten() {
        let is_delivered = text(delivery, "state") == State::Delivered.as_str();
        match delivery.get("step") {
            None => delivered &= is_delivered,
            // Of steps that follow each other one is enough.
            Some(_) => *by_steps.entry(text(delivery, "recipient")).or_insert(false) |= is_delivered,
        }
        let attempts = delivery.get("attempts").and_then(Value::as_array).map_or(0, Vec::len);
        let members = ["recipient", "region", "channel", "provider", "state", "reason"];
        let cells = members.into_iter().map(|member| text(delivery, member));
        table.row(cells.chain([attempts.to_string()]));
    }
    delivered &= by_steps.into_values().all(|is_delivered| is_delivered);
    if !table.is_empty() {
        table.write(out)?;
    }
    if let Some(broadcast) = status.get("broadcast") {
        delivered &= show_broadcast(broadcast, out)?;
    }
    Ok(delivered)
}

/// Shows the progress of a broadcast by region. Returns whether every delivery was delivered.
fn show_broadcast(broadcast: &Value, out: &mut impl Write) -> Result<bool, Failure> {
    let mut table = Table::new(["region", " members", " done", "deliveries"]);
    let mut delivered = true;
    for (region, here) in broadcast
        .get("by_region")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let count = |name: &str| here.get(name).map_or_else(|| "0".to_owned(), Value::to_string);
        let by_state = here.get("by_state").and_then(Value::as_object);
        let states: Vec<String> = by_state
            .into_iter()
            .flatten()
            .map(|(state, count)| {
                delivered &= state == State::Delivered.as_str();
                format!("{count} {state}")
            })
            .collect();
        table.row([region.clone(), count("total"), count("done"), states.join(", ")]);
    }
    if !table.is_empty() {
        table.write(out)?;
    }
    Ok(delivered)
}
