//! Scenario files: a load, the faults that are made meanwhile, and the expected result. Unknown keys are errors.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, ensure};
use serde::Deserialize;
use shared::{
    channel::{Channel, Class},
    nats::topology::Durability,
    provider::Provider,
    receipt::State,
};

use super::damage::{DamageKind, DataFile};
use crate::{
    links::{Between, Trouble},
    peal::Build,
    providers::{Answer, Rule},
};

/// The folder with the scenario files.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/faults");

/// A range from the first number to the second. Where a scenario needs one number, the seed decides which.
pub(super) type Range = (f64, f64);

/// One scenario file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    /// The file's name without `.toml`.
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
    /// A figure to measure and print.
    pub(super) figure: Option<Figure>,
    /// What the parts reach each other through.
    #[serde(default)]
    pub(super) network: Medium,
    #[serde(default)]
    pub(super) mesh: MeshPlan,
    #[serde(default)]
    pub(super) load: Load,
    /// Rules that simulators follow during the whole scenario.
    #[serde(default, rename = "script")]
    pub(super) scripts: Vec<Rules>,
    #[serde(default, rename = "fault")]
    pub(super) faults: Vec<Fault>,
    /// Invalid requests, and their expected answers.
    #[serde(default, rename = "request")]
    pub(super) requests: Vec<Request>,
    /// Invalid messages, and their expected final states.
    #[serde(default, rename = "message")]
    pub(super) messages: Vec<Message>,
    pub(super) expect: Expect,
}

/// A figure that is measured and printed beside the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Figure {
    /// Pushes a second before the first fault, and after the last.
    DrainRate,
    /// How long fresh notifications take before the first fault, and during it.
    FreshLatency,
    /// What regions do while they are cut off, and how soon everything arrives afterwards.
    Autonomy,
    /// How soon the workers of other regions help, and whether they stop by themselves.
    Spill,
    /// What the providers without trouble get a second while the others have it, as a share of before.
    LanesApart,
    /// How many requests reached Apple, and how many it refused.
    Refused,
}

/// What the parts reach each other through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Medium {
    /// Proxies, which can delay, cut and reset connections.
    #[default]
    Proxies,
    /// Network namespaces, one for each party, on one bridge and without a route to the outside. Packets can be lost, and
    /// rates are real.
    Namespaces,
}

/// The mesh, where it differs from the default.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MeshPlan {
    pub(super) regions: Vec<String>,
    /// The number of gateways in each region. Callers use them in turn.
    pub(super) gateways: usize,
    pub(super) workers: usize,
    /// The processes that begin as the former version, by their names or the first parts of them: `worker-eu` means all
    /// workers of a region.
    pub(super) former: Vec<String>,
    /// Whether the workers of each region help the other regions.
    pub(super) helpers: bool,
    /// Jobs in flight in the normal lane of a worker. It limits how many pushes a crash may double.
    pub(super) in_flight: usize,
    /// Whether an admin gateway runs at the hub.
    pub(super) admin: bool,
    /// More settings of the workers, as TOML.
    pub(super) worker: String,
    /// More settings of every provider, as TOML.
    pub(super) provider: String,
    /// More settings of SMTP, as TOML keys.
    pub(super) smtp: String,
    /// More settings of the gateways, as TOML tables.
    pub(super) gateway: String,
    /// The most bytes that each stream of work may hold; -1 is no limit.
    pub(super) max_bytes: i64,
    /// The durability of gateways and nats-servers; with `production` each region has three servers.
    pub(super) durability: Durability,
}

impl Default for MeshPlan {
    fn default() -> Self {
        Self {
            regions: vec!["eu".into()],
            gateways: 1,
            workers: 2,
            former: Vec::new(),
            helpers: false,
            in_flight: 64,
            admin: false,
            worker: String::new(),
            provider: String::new(),
            smtp: String::new(),
            gateway: String::new(),
            max_bytes: -1,
            durability: Durability::default(),
        }
    }
}

/// The notifications that are sent meanwhile. The load continues at its rate until the last fault is over.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Load {
    /// The least number of notifications.
    pub(super) notifications: usize,
    /// Notifications a second.
    pub(super) rate: f64,
    pub(super) recipients: usize,
    /// The providers of each recipient's devices, of one or more channels.
    pub(super) devices: Vec<Provider>,
    /// Whether each notification is for all channels of these devices, one as the fallback of the other, instead of for one of them
    /// in turn. Then every step but the last must fail.
    pub(super) fallback: bool,
    /// How many devices a recipient has at each of those providers.
    pub(super) copies: usize,
    /// The classes of notifications, in turn.
    pub(super) classes: Vec<Class>,
    /// How notifications are sent, in turn.
    #[serde(rename = "ways")]
    pub(super) protocols: Vec<Protocol>,
    /// The regions that notifications are sent to, in turn; all if empty.
    pub(super) from: Vec<String>,
    /// Whether each notification is sent to all of those at once, with the same ids and the same `Idempotency-Key`.
    pub(super) everywhere: bool,
    /// The home regions of recipients, in turn; all if empty.
    pub(super) homes: Vec<String>,
    pub(super) ttl_s: Option<u32>,
    /// How long a caller repeats a request that fails, seconds.
    pub(super) patience_s: f64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            notifications: 1500,
            rate: 300.0,
            recipients: 48,
            devices: vec![Provider::Apns],
            fallback: false,
            copies: 1,
            classes: vec![Class::Normal],
            protocols: vec![Protocol::Http],
            from: Vec::new(),
            everywhere: false,
            homes: Vec::new(),
            ttl_s: None,
            patience_s: 60.0,
        }
    }
}

impl Load {
    /// The channels that reach its devices. Each notification is for one of them, in turn, or for all in this order.
    pub(super) fn channels(&self) -> Vec<Channel> {
        let reaches = |channel: &Channel| self.devices.iter().any(|device| device.carries(*channel));
        Channel::ALL.iter().copied().filter(reaches).collect()
    }

    /// A time limit for the load: three times as long as it takes at its rate.
    pub(super) fn length(&self) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "no load has 2^52 notifications")]
        let seconds = self.notifications as f64 / self.rate;
        Duration::from_secs_f64(3.0 * seconds)
    }
}

/// How a notification is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Protocol {
    /// By a request to the gateway.
    Http,
    /// By a publish to the intake of the app.
    Nats,
    /// By a publish of the job itself, as services of the former version do.
    FormerNats,
}

/// A fault, and when it is made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    pub(super) inject: Inject,
    /// When it is made, as the share of the load that has been sent.
    #[serde(default = "early")]
    pub(super) at: Range,
    /// How long it lasts, seconds.
    #[serde(default = "briefly")]
    pub(super) for_s: Range,
    /// How often it is made.
    #[serde(default = "once")]
    pub(super) times: usize,
    /// If given, the fault is injected at this interval in seconds until the load has been sent, instead of at `at`.
    pub(super) every_s: Option<f64>,
    /// The region that it hits; a random one if absent.
    pub(super) region: Option<String>,
}

fn early() -> Range {
    (0.1, 0.5)
}

fn briefly() -> Range {
    (0.3, 0.8)
}

fn once() -> usize {
    1
}

/// What a fault does.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Inject {
    /// Processes are killed (SIGKILL) and started again.
    Kill(VictimKind),
    /// Two of a region's three nats-servers are killed at once and started again.
    Majority,
    /// Processes are stopped by SIGSTOP and continue after SIGCONT.
    Pause(VictimKind),
    /// Processes are ended by SIGTERM and started again.
    Restart(VictimKind),
    /// Processes are ended one after another, and each is started again as another version, with the same files. They are
    /// meant as in `mesh.former`.
    Replace {
        whom: String,
        with: Build,
        /// Whether they end by SIGKILL instead of SIGTERM.
        #[serde(default)]
        kill: bool,
    },
    /// A process runs for only a fifth of the time.
    Squeeze(VictimKind),
    /// A process aborts at each of these crash points in turn. Which passing of the point aborts is random.
    Crash { points: Vec<String>, passing: (u64, u64) },
    /// There is trouble on all links of a kind.
    Links { between: Between, trouble: Trouble },
    /// A region is cut off: no packet passes between it and the hub or any other region. Meanwhile recipients register
    /// and opt out there, and `backlog` notifications for other regions are sent as fast as they are accepted.
    Isolate {
        #[serde(default)]
        backlog: usize,
    },
    /// All workers of a region are killed at once, and later started again.
    NoWorkers,
    /// All links are cut one by one, then restored one by one, in random orders.
    Swizzle,
    /// Simulators follow these rules.
    Script(Vec<Rules>),
    /// A simulator disturbs its clients.
    Simulator(SimulatorFault),
    /// A worker is ended, one of its files is damaged, and it is started again.
    Damage { file: DataFile, how: DamageKind },
    /// The files of a worker are set back to what they were some time before, as from a backup.
    SetBack,
    /// The files of a worker are copied over those of another worker of its region, and both run on.
    Copied,
    /// The disk under the files of a worker or a nats-server is full.
    DiskFull(VictimKind),
    /// A worker or a nats-server loses power: of its files, only flushed data is left.
    PowerLoss(VictimKind),
    /// The disk of a worker or a nats-server fails to flush.
    FlushErrors(VictimKind),
    /// The clock of a process is wrong by this many seconds. The process is restarted before and afterwards.
    Clock { whom: VictimKind, by_s: i64 },
    /// A lane's consumer is deleted. A worker that starts makes it again.
    ConsumerDeleted,
    /// These streams are deleted one after another, each as soon as a gateway has created the former again.
    StreamsDeleted(Vec<String>),
    /// The leaders of these streams step down, one after another.
    LeadersChange(Vec<String>),
    /// This many facts are changed, and after each a notification is sent that depends on it, at another gateway. They go on
    /// while the next faults are made.
    BackToBack(usize),
    /// Everything accepted so far is sent again, over HTTP and over NATS.
    Replay,
    /// This many connections send nothing, or requests that never end.
    IdleSockets(usize),
    /// Recipients remove their devices or opt out while no worker runs.
    Withdrawal,
    /// `count` more notifications are sent to one recipient in sixteen, as fast as they are accepted, and Apple gives
    /// `answer` to all of their devices.
    Storm { count: usize, answer: Answer },
    /// This many devices are registered at once, then again for other recipients.
    Stampede(usize),
    /// This many recipients join a topic, and a broadcast is sent to it.
    Broadcast(usize),
    /// This many recipients of the load move to another region.
    Move(usize),
    /// A recipient has this many devices, from before there was a limit, another cannot be read, and a message is too large
    /// to be kept with a reason. Finished work must be trimmed nevertheless.
    Stuck(usize),
}

/// The rules for one provider's simulator.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    pub(super) provider: Provider,
    pub(super) rules: Vec<Rule>,
}

/// The processes that a fault hits. Of several, the seed chooses one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum VictimKind {
    Gateway,
    Worker,
    Nats,
    Hub,
    /// A gateway, a worker or a region's nats-server.
    Any,
    /// All gateways and workers, one after another.
    Programs,
    /// All processes, one after another.
    All,
}

/// How a simulator disturbs its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SimulatorFault {
    /// It sends GOAWAY on every connection, repeatedly.
    GoAway,
    /// It closes every connection without notice, repeatedly.
    Close,
    /// It stops and starts again.
    Restart,
    /// The APNs key is unknown for a while.
    RevokeKey,
    /// The app is given a new APNs key by the API, and Apple forgets the former a while later.
    RotateKey,
    /// FCM forgets its access tokens.
    RevokeTokens,
    /// FCM forgets its access tokens, and issues no new ones for a while.
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
    /// The API key to use instead of the app's; if empty, the request has none.
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

/// A message that is published to a lane of a region.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Message {
    pub(super) name: String,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    #[serde(flatten)]
    pub(super) body: Body,
    /// Its final state; absent if no stream accepts it.
    pub(super) ends: Option<State>,
}

/// A body, as text or in hexadecimal digits. `%PAD%` is replaced by `pad` times `x`, `%DEEP%` by `pad` brackets.
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

/// The expected result.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    /// Deliveries of accepted notifications without a final state, or whose receipt says `delivered` although the push
    /// did not arrive; at most.
    #[serde(default)]
    pub(super) lost: usize,
    /// Whether a push that arrived needs no receipt, because the stream of receipts is deleted.
    #[serde(default)]
    pub(super) receipts_lost: bool,
    /// Pushes that arrived at a device more than once; at most.
    #[serde(default)]
    pub(super) doubled: usize,
    /// How many more pushes may be doubled for each kill of a worker.
    #[serde(default)]
    pub(super) doubled_a_kill: usize,
    /// Notifications that were never accepted; at most.
    #[serde(default)]
    pub(super) refused: usize,
    /// How long it may take after the last fault until everything is settled, seconds.
    pub(super) drain_s: f64,
    /// Final states as shares of all deliveries; without any, all are `delivered`.
    #[serde(default)]
    pub(super) states: BTreeMap<State, Range>,
    /// Whether a push may arrive although its provider says that it did not.
    #[serde(default)]
    pub(super) arrives_anyway: bool,
    /// A known defect. A broken scenario is shown as `known` and does not fail the suite.
    pub(super) known: Option<String>,
    /// Ranges of figures, by name. Only for scenarios that are not run before every change: on a busy machine they would
    /// fail without a defect.
    #[serde(default)]
    pub(super) figures: BTreeMap<String, Range>,
    /// Whether finished work is trimmed meanwhile, so that the streams hold less than was accepted.
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

    /// Whether processes run as the former version.
    pub(super) fn needs_former(&self) -> bool {
        !self.mesh.former.is_empty() || self.has(|inject| matches!(inject, Inject::Replace { .. }))
    }

    fn has(&self, kind: fn(&Inject) -> bool) -> bool {
        self.faults.iter().any(|fault| kind(&fault.inject))
    }
}

/// All scenarios in the order of their names.
///
/// # Errors
/// When a file cannot be read or is no scenario.
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
    fn every_scenario_file_is_valid() {
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
