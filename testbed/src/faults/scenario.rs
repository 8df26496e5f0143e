//! Scenario files: a load, the faults in it, and what must come of it. Unknown keys are errors.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, ensure};
use serde::Deserialize;
use shared::{
    channel::{Class, Provider},
    nats::topology::Durability,
    receipt::State,
};

use super::damage::{File, How};
use crate::{
    links::{Between, Trouble},
    providers::{Answer, Rule},
};

/// Where the files are.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/faults");

/// From the first to the second; which, the seed decides.
pub(super) type Range = (f64, f64);

/// One file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    /// The file's name.
    #[serde(skip)]
    pub(super) name: String,
    /// What it shows, in one line.
    pub(super) about: String,
    /// Rows of the fault matrix that it covers.
    pub(super) rows: Vec<u32>,
    /// Whether it is run before every change.
    #[serde(default)]
    pub(super) short: bool,
    /// Whether it takes so long that it is only run when it is named.
    #[serde(default)]
    pub(super) long: bool,
    /// What is measured.
    pub(super) figure: Option<Figure>,
    /// What the parts reach each other through.
    #[serde(default)]
    pub(super) network: Medium,
    #[serde(default)]
    pub(super) mesh: MeshPlan,
    #[serde(default)]
    pub(super) load: Load,
    /// What the simulators do all the time.
    #[serde(default, rename = "script")]
    pub(super) scripts: Vec<Rules>,
    #[serde(default, rename = "fault")]
    pub(super) faults: Vec<Fault>,
    /// Requests with nonsense, and their answers.
    #[serde(default, rename = "request")]
    pub(super) requests: Vec<Request>,
    /// Messages with nonsense, and their ends.
    #[serde(default, rename = "message")]
    pub(super) messages: Vec<Message>,
    pub(super) expect: Expect,
}

/// What is measured, and told beside the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Figure {
    /// Pushes a second before the first fault, and after the last.
    DrainRate,
    /// How long fresh notifications take before the first fault, and during it.
    FreshLatency,
    /// What regions do while they are cut off, and how soon everything flows after.
    Autonomy,
    /// How soon the workers of other regions help, and whether they end it by themselves.
    Spill,
}

/// What the parts reach each other through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Medium {
    /// Proxies, which can delay, cut and reset connections.
    #[default]
    Proxies,
    /// A bridge between network namespaces, one for each party, none with a way out. Packets are lost, rates are real.
    Namespaces,
}

/// The mesh, where it is not as usual.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MeshPlan {
    pub(super) regions: Vec<String>,
    pub(super) workers: usize,
    /// Whether the workers of each region stand by to help the others.
    pub(super) helpers: bool,
    /// Jobs under way in the normal lane of a worker: what bounds how many a crash may double.
    pub(super) in_flight: usize,
    /// Settings of the workers, as TOML.
    pub(super) worker: String,
    /// Settings of every provider, as TOML.
    pub(super) provider: String,
    /// Settings of the gateway, as TOML tables.
    pub(super) gateway: String,
    /// Most bytes of the streams of work.
    pub(super) max_bytes: i64,
    /// What gateways and nats-servers are to promise: with `production` each region has three servers.
    pub(super) durability: Durability,
}

impl Default for MeshPlan {
    fn default() -> Self {
        Self {
            regions: vec!["eu".into()],
            workers: 2,
            helpers: false,
            in_flight: 64,
            worker: String::new(),
            provider: String::new(),
            gateway: String::new(),
            max_bytes: -1,
            durability: Durability::default(),
        }
    }
}

/// What is sent while the faults happen. It goes on at its rate until the last of them is over.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Load {
    /// At least so many.
    pub(super) notifications: usize,
    /// A second.
    pub(super) rate: f64,
    pub(super) recipients: usize,
    /// Devices of each recipient.
    pub(super) devices: Vec<Provider>,
    /// Of each of those, so many.
    pub(super) copies: usize,
    /// Taken in turn.
    pub(super) classes: Vec<Class>,
    /// Taken in turn.
    pub(super) ways: Vec<Way>,
    /// Regions they are handed in at, in turn; all if empty.
    pub(super) from: Vec<String>,
    /// Whether each is handed in at all of those, at once and with the same ids and `Idempotency-Key`.
    pub(super) everywhere: bool,
    /// Regions the recipients live in; all if empty.
    pub(super) homes: Vec<String>,
    pub(super) ttl_s: Option<u32>,
    /// For how long a caller tries again.
    pub(super) patience_s: f64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            notifications: 1500,
            rate: 300.0,
            recipients: 48,
            devices: vec![Provider::Apns],
            copies: 1,
            classes: vec![Class::Normal],
            ways: vec![Way::Http],
            from: Vec::new(),
            everywhere: false,
            homes: Vec::new(),
            ttl_s: None,
            patience_s: 60.0,
        }
    }
}

impl Load {
    /// Three times as long as it takes at its rate.
    pub(super) fn length(&self) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "no load has 2^52 notifications")]
        let seconds = self.notifications as f64 / self.rate;
        Duration::from_secs_f64(3.0 * seconds)
    }
}

/// How a notification is handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    Http,
    Nats,
}

/// One kind of fault.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    pub(super) inject: Inject,
    /// When, as a share of the load handed in.
    #[serde(default = "early")]
    pub(super) at: Range,
    /// For how long.
    #[serde(default = "a_moment")]
    pub(super) for_s: Range,
    /// How often.
    #[serde(default = "once")]
    pub(super) times: usize,
    /// Again after so many seconds until the load is handed in, instead of `at`.
    pub(super) every_s: Option<f64>,
    /// Where; any region if absent.
    pub(super) region: Option<String>,
}

fn early() -> Range {
    (0.1, 0.5)
}

fn a_moment() -> Range {
    (0.3, 0.8)
}

fn once() -> usize {
    1
}

/// What is done.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Inject {
    /// SIGKILL, and started again.
    Kill(Whom),
    /// SIGKILL for two of a region's three nats-servers at once, and started again.
    Majority,
    /// SIGSTOP, then SIGCONT.
    Pause(Whom),
    /// SIGTERM, and started again when it has ended.
    Restart(Whom),
    /// Runs only a fifth of the time.
    Squeeze(Whom),
    /// Aborts at each of these points in turn, at a random passing.
    Crash { points: Vec<String>, passing: (u64, u64) },
    /// Trouble on all links of a kind.
    Links { between: Between, trouble: Trouble },
    /// A region is alone: no packet passes between it and the hub or any other region. Meanwhile people register there
    /// and change their minds, and so many more are handed in for elsewhere, as fast as they are taken.
    Isolate {
        #[serde(default)]
        backlog: usize,
    },
    /// All workers of a region are killed at once, and later started again.
    NoWorkers,
    /// All links are cut one by one, then restored one by one, in random orders.
    Swizzle,
    /// A simulator follows these rules.
    Script(Rules),
    /// A simulator does something to its clients.
    Simulator(Simulator),
    /// A worker ends, one of its files is damaged, it starts again.
    Damage { file: File, how: How },
    /// The disk under the files of a worker or a nats-server is full.
    DiskFull(Whom),
    /// A worker or a nats-server ends, and of its files only what it had flushed is left.
    PowerLoss(Whom),
    /// The disk of a worker or a nats-server fails to flush.
    FlushErrors(Whom),
    /// Its clock is wrong by so many seconds; it is started for that, and again.
    Clock { whom: Whom, by_s: i64 },
    /// The lane's consumer is deleted, and made again by a worker that starts.
    ConsumerDeleted,
    /// Everything accepted so far is sent again, by HTTP and by NATS.
    Replay,
    /// Connections that say nothing, and requests that never end.
    IdleSockets(usize),
    /// Devices are withdrawn while no worker looks.
    Withdrawal,
    /// So many more, handed in as fast as they are taken, to every sixteenth recipient; Apple answers them like this.
    Storm { count: usize, answer: Answer },
    /// Devices are registered in a hurry, and every token ends with another recipient.
    Stampede(usize),
}

/// How a simulator is to behave.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    pub(super) provider: Provider,
    pub(super) rules: Vec<Rule>,
}

/// Who suffers. Of several, the seed picks one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Whom {
    Gateway,
    Worker,
    Nats,
    Hub,
    /// A gateway, a worker or a region's nats-server.
    Any,
    /// Gateways and workers in turn.
    Programs,
    /// Everyone in turn.
    All,
}

/// What a simulator may do to its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Simulator {
    /// GOAWAY on every connection, again and again.
    GoAway,
    /// Every connection closes without a word, again and again.
    Close,
    /// It ends and starts again.
    Restart,
    /// The APNs key is unknown for a while.
    RevokeKey,
    /// FCM forgets its access tokens.
    RevokeTokens,
    /// FCM forgets its access tokens, and gives out no new ones for a while.
    TokensDown,
}

/// A request to a gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    pub(super) name: String,
    #[serde(default = "post")]
    pub(super) method: String,
    #[serde(default = "notifications")]
    pub(super) path: String,
    /// Another API key; none if empty.
    pub(super) key: Option<String>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    #[serde(flatten)]
    pub(super) body: Body,
    pub(super) status: u16,
}

fn post() -> String {
    "POST".into()
}

fn notifications() -> String {
    "/v1/notifications".into()
}

/// A message to the lane of a region.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Message {
    pub(super) name: String,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    #[serde(flatten)]
    pub(super) body: Body,
    /// How it ends; absent if no stream takes it.
    pub(super) ends: Option<State>,
}

/// A body, as text or in hexadecimal digits; `%PAD%` stands for `pad` times `x`, `%DEEP%` for so many brackets.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Body {
    #[serde(default, rename = "body")]
    pub(super) text: String,
    #[serde(default)]
    pub(super) hex: String,
    #[serde(default)]
    pub(super) pad: usize,
}

impl Body {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let hex = self.hex.as_bytes().chunks(2).filter_map(|pair| {
            let text = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(text, 16).ok()
        });
        let text = self
            .text
            .replace("%PAD%", &"x".repeat(self.pad))
            .replace("%DEEP%", &"[".repeat(self.pad));
        text.into_bytes().into_iter().chain(hex).collect()
    }
}

/// What must come of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    /// Deliveries of accepted notifications without a final state, or said to be delivered and not.
    #[serde(default)]
    pub(super) lost: usize,
    /// Pushes that reached a device more than once.
    #[serde(default)]
    pub(super) doubled: usize,
    /// So many more for each time that a worker was killed.
    #[serde(default)]
    pub(super) doubled_a_kill: usize,
    /// Notifications that no gateway or stream would take.
    #[serde(default)]
    pub(super) refused: usize,
    /// Seconds from the end of the last fault until everything is settled.
    pub(super) drain_s: f64,
    /// Final states as shares of all deliveries; without any, all are `delivered`.
    #[serde(default)]
    pub(super) states: BTreeMap<State, Range>,
    /// Whether a push may arrive although its provider says that it did not.
    #[serde(default)]
    pub(super) arrives_anyway: bool,
    /// A defect that is not mended yet: what is broken is shown and does not count.
    pub(super) known: Option<String>,
    /// Figures that are judged, by name. Only for scenarios that are not run before every change: a busy machine would
    /// judge with.
    #[serde(default)]
    pub(super) figures: BTreeMap<String, Range>,
    /// Whether done work is trimmed meanwhile, so that the streams hold less than was accepted.
    #[serde(default)]
    pub(super) trims: bool,
}

impl Scenario {
    /// Whether it mounts file systems.
    pub(super) fn needs_mounts(&self) -> bool {
        self.has(|inject| matches!(inject, Inject::DiskFull(_) | Inject::PowerLoss(_)))
    }

    /// Whether it makes system calls fail.
    pub(super) fn needs_strace(&self) -> bool {
        self.has(|inject| matches!(inject, Inject::FlushErrors(_)))
    }

    /// Whether it makes clocks wrong.
    pub(super) fn needs_faketime(&self) -> bool {
        self.has(|inject| matches!(inject, Inject::Clock { .. }))
    }

    fn has(&self, kind: fn(&Inject) -> bool) -> bool {
        self.faults.iter().any(|fault| kind(&fault.inject))
    }
}

/// All scenarios in the order of their names.
///
/// # Errors
/// When a file cannot be understood.
pub(super) fn all() -> anyhow::Result<Vec<Scenario>> {
    let mut paths: Vec<_> = std::fs::read_dir(FOLDER)
        .with_context(|| format!("reading {FOLDER}"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> anyhow::Result<Scenario> {
    let text = std::fs::read_to_string(path)?;
    let mut scenario: Scenario = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    scenario.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    for (range, least, most) in scenario
        .faults
        .iter()
        .flat_map(|fault| [(fault.at, 0.0, 1.0), (fault.for_s, 0.0, 180.0)])
    {
        ensure!(
            least <= range.0 && range.0 <= range.1 && range.1 <= most,
            "in {}: {range:?} must be a range within {least} and {most}",
            path.display()
        );
    }
    Ok(scenario)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_understood() {
        let scenarios = all().unwrap();
        assert!(scenarios.iter().any(|scenario| scenario.short));
        let rows: std::collections::BTreeSet<u32> =
            scenarios.iter().flat_map(|scenario| scenario.rows.clone()).collect();
        assert!(rows.iter().all(|row| (1..=40).contains(row)), "{rows:?}");
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        let text = "about = \"\"\nrows = [1]\nlaod = {}\n[expect]\ndrain_s = 1";
        assert!(
            toml::from_str::<Scenario>(text)
                .unwrap_err()
                .to_string()
                .contains("laod")
        );
    }
}
