//! An answer with a status of 2xx holds for everything that is accepted after it, by whichever gateway of the region: here
//! one gateway takes a fact, and the other at once a notification that depends on it.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures::{StreamExt, stream};
use serde_json::{Value, json};
use shared::nats::topology::{self, Durability};
use testbed::peal::Peal;
use tokio::time::{Instant, sleep};

use crate::rig::{TIMEOUT, assert_settled, start};

/// Tries in progress at the same time.
const CONCURRENT: usize = 16;

/// A fact that changes what a notification must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Registered,
    SecondDevice,
    OptedOut,
    CategoryOptedOut,
    Muted,
    TopicMuted,
    DeviceRemoved,
    AllDevicesRemoved,
    HandedOver,
    Deleted,
    Joined,
    Left,
}

impl Change {
    const ALL: [Self; 12] = [
        Self::Registered,
        Self::SecondDevice,
        Self::OptedOut,
        Self::CategoryOptedOut,
        Self::Muted,
        Self::TopicMuted,
        Self::DeviceRemoved,
        Self::AllDevicesRemoved,
        Self::HandedOver,
        Self::Deleted,
        Self::Joined,
        Self::Left,
    ];
}

/// One try: a recipient of its own, with devices of their own.
#[derive(Debug, Clone, Copy)]
struct Try {
    change: Change,
    number: usize,
}

impl Try {
    fn recipient(self) -> String {
        format!("{:?}-{}", self.change, self.number).to_lowercase()
    }

    /// Another recipient: who takes over the device, or stays in the topic.
    fn other(self) -> String {
        format!("{}-other", self.recipient())
    }

    fn topic(self) -> String {
        format!("topic-{}", self.recipient())
    }

    fn token(self, device: usize) -> String {
        format!("{:032x}{:016x}{device:016x}", self.change as usize + 1, self.number)
    }

    /// The pushes that each device must get, by the title of the notification.
    fn expected(self) -> Vec<(String, Vec<&'static str>)> {
        let pushes: &[&[&str]] = match self.change {
            Change::Registered => &[&["hi"]],
            Change::SecondDevice | Change::Joined => &[&["hi"], &["hi"]],
            Change::OptedOut
            | Change::CategoryOptedOut
            | Change::Muted
            | Change::DeviceRemoved
            | Change::AllDevicesRemoved
            | Change::Deleted => &[&[]],
            Change::HandedOver => &[&["other"]],
            Change::TopicMuted | Change::Left => &[&[], &["hi"]],
        };
        let devices = pushes.iter().enumerate();
        devices
            .map(|(device, titles)| (self.token(device), titles.to_vec()))
            .collect()
    }
}

/// A gateway of a mesh.
#[derive(Clone, Copy)]
struct Gateway<'a> {
    peal: &'a Peal,
    url: &'a str,
}

impl Gateway<'_> {
    /// Sends a request until it succeeds. Only trouble in the mesh is a reason to repeat it.
    async fn expect(self, method: &str, path: &str, body: Option<Value>) -> Value {
        let deadline = Instant::now() + TIMEOUT;
        let url = format!("{}/v1/{path}", self.url);
        for attempt in 0.. {
            let mut request = self.peal.http.request(method.parse().unwrap(), &url);
            request = request.bearer_auth(&self.peal.key);
            if let Some(body) = &body {
                request = request.json(body);
            }
            let answer = request.send().await.unwrap();
            let status = answer.status();
            let text = answer.text().await.unwrap();
            // The first request may have removed it, although it failed.
            let is_removed = method == "DELETE" && attempt > 0 && status == 404;
            if status.is_success() || is_removed {
                return serde_json::from_str(&text).unwrap_or_default();
            }
            assert!(
                status == 503 && Instant::now() < deadline,
                "{method} {path}: {status} {text}\n{}",
                self.peal.complaints()
            );
            sleep(Duration::from_millis(100)).await;
        }
        unreachable!("the loop returns or panics")
    }

    /// Registers a device and returns the id of its address.
    async fn register(self, recipient: &str, token: &str) -> String {
        let body = json!({ "provider": "apns", "token": token });
        let path = format!("recipients/{recipient}/addresses");
        let answer = self.expect("POST", &path, Some(body)).await;
        answer["address_id"].as_str().unwrap().to_owned()
    }

    async fn join(self, recipient: &str, topic: &str) {
        self.expect("PUT", &format!("recipients/{recipient}/topics/{topic}"), None)
            .await;
    }

    /// Sends a notification and returns its id.
    async fn notify(self, to: Value, title: &str) -> String {
        let body = json!({
            "event_id": format!("{to}-{title}").replace(|c: char| !c.is_ascii_alphanumeric(), "-"),
            "to": to,
            "category": "offers",
            "push": { "title": title },
        });
        let answer = self.expect("POST", "notifications", Some(body)).await;
        answer["notification_id"].as_str().unwrap().to_owned()
    }

    /// What is true before the change. Returns the id of the first device's address.
    async fn prepare(self, of: Try) -> String {
        let (recipient, other, topic) = (of.recipient(), of.other(), of.topic());
        if of.change == Change::Registered {
            return String::new();
        }
        let address = self.register(&recipient, &of.token(0)).await;
        match of.change {
            Change::HandedOver => {
                self.expect("PUT", &format!("recipients/{other}"), Some(json!({})))
                    .await;
            }
            Change::TopicMuted | Change::Joined | Change::Left => {
                self.register(&other, &of.token(1)).await;
                self.join(&other, &topic).await;
                if of.change != Change::Joined {
                    self.join(&recipient, &topic).await;
                }
            }
            _ => {}
        }
        address
    }

    /// Makes the change.
    async fn change(self, of: Try, address: &str) {
        let recipient = of.recipient();
        let path = |rest: &str| format!("recipients/{recipient}{rest}");
        let addresses = path("/addresses");
        match of.change {
            Change::Registered => drop(self.register(&recipient, &of.token(0)).await),
            Change::SecondDevice => drop(self.register(&recipient, &of.token(1)).await),
            Change::OptedOut => {
                let wanted = json!({ "channels": { "push": false } });
                self.expect("PUT", &path("/preferences"), Some(wanted)).await;
            }
            Change::CategoryOptedOut => {
                let wanted = json!({ "categories": { "offers": { "push": false } } });
                self.expect("PUT", &path("/preferences"), Some(wanted)).await;
            }
            Change::Muted => {
                let wanted = json!({ "muted": true });
                self.expect("PATCH", &path("/preferences"), Some(wanted)).await;
            }
            Change::TopicMuted => {
                let wanted = json!({ "topics": { of.topic(): false } });
                self.expect("PATCH", &path("/preferences"), Some(wanted)).await;
            }
            Change::DeviceRemoved => drop(self.expect("DELETE", &format!("{addresses}/{address}"), None).await),
            Change::AllDevicesRemoved => drop(self.expect("DELETE", &addresses, None).await),
            Change::HandedOver => drop(self.register(&of.other(), &of.token(0)).await),
            Change::Deleted => drop(self.expect("DELETE", &path(""), None).await),
            Change::Joined => self.join(&recipient, &of.topic()).await,
            Change::Left => {
                self.expect("DELETE", &path(&format!("/topics/{}", of.topic())), None)
                    .await;
            }
        }
    }

    /// Sends what the change must affect.
    async fn send(self, of: Try) {
        match of.change {
            Change::TopicMuted | Change::Joined | Change::Left => {
                drop(self.notify(json!({ "topic": of.topic() }), "hi").await)
            }
            Change::HandedOver => {
                self.notify(json!({ "recipients": [of.recipient()] }), "hi").await;
                self.notify(json!({ "recipients": [of.other()] }), "other").await;
            }
            _ => drop(self.notify(json!({ "recipients": [of.recipient()] }), "hi").await),
        }
    }
}

/// Makes every try and returns how many of each kind went wrong.
async fn count_wrong(peal: &Peal, region: &str, tries: usize) -> BTreeMap<Change, usize> {
    let gateways: Vec<_> = peal.region(region).gateways().collect();
    let gateway = |number: usize| Gateway {
        peal,
        url: &gateways[number % gateways.len()].url,
    };
    let all = (0..tries).flat_map(|number| Change::ALL.map(|change| Try { change, number }));
    let prepared: Vec<_> = stream::iter(all)
        .map(|of| async move { (of, gateway(of.number).prepare(of).await) })
        .buffer_unordered(CONCURRENT)
        .collect()
        .await;
    stream::iter(&prepared)
        .for_each_concurrent(CONCURRENT, |(of, address)| async move {
            gateway(of.number).change(*of, address).await;
            gateway(of.number + 1).send(*of).await;
        })
        .await;
    assert_settled(peal).await;
    let mut pushes: HashMap<String, Vec<String>> = HashMap::new();
    for push in peal.simulators.apns.log().pushes() {
        pushes.entry(push.token).or_default().push(title(&push.payload));
    }
    let mut wrong = BTreeMap::new();
    for (of, _) in &prepared {
        let is_right = of.expected().into_iter().all(|(token, titles)| {
            let mut found = pushes.remove(&token).unwrap_or_default();
            // A worker that is killed may have sent what another sends again.
            found.dedup();
            found == titles
        });
        if !is_right {
            *wrong.entry(of.change).or_default() += 1;
        }
    }
    wrong
}

fn title(payload: &[u8]) -> String {
    let payload: Value = serde_json::from_slice(payload).unwrap();
    payload["aps"]["alert"]["title"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_follows_every_fact_that_was_answered_before_it() {
    none_is_wrong(100).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn a_notification_follows_every_fact_a_thousand_times() {
    none_is_wrong(1_000).await;
}

async fn none_is_wrong(tries: usize) {
    let peal = start(|plan| {
        plan.regions = vec!["eu".into()];
        plan.gateways = 2;
        plan.workers = 3;
        plan.sample_ratio = 0.0;
    })
    .await;
    let wrong = count_wrong(&peal, "eu", tries).await;
    assert_eq!(wrong, BTreeMap::new(), "of {tries} each");
}

/// Removes what all processes of the region follow the directory with; they notice after some seconds.
async fn interrupt_followers_of_directory(peal: &Peal, region: &str) {
    let client = peal.connect(region).await.unwrap();
    let ask = async |request: String| {
        let answer = client.request(format!("$JS.API.CONSUMER.{request}"), "".into()).await;
        serde_json::from_slice::<Value>(&answer.unwrap().payload).unwrap()
    };
    let names = ask(format!("NAMES.{}", topology::DIRECTORY)).await;
    let names = names["consumers"].as_array().unwrap();
    assert!(!names.is_empty());
    for name in names {
        let name = name.as_str().unwrap();
        let answer = ask(format!("DELETE.{}.{name}", topology::DIRECTORY)).await;
        assert_eq!(answer["success"], true, "{answer}");
    }
}

/// Notifications that are sent and withdrawn while no worker reads: all of them are pulled later than the withdrawals were
/// answered. The workers then hear of the withdrawals much later than of the jobs.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_that_was_withdrawn_before_it_was_pulled() {
    let peal = start(|plan| {
        plan.regions = vec!["eu".into()];
        plan.gateways = 2;
        plan.workers = 3;
        plan.sample_ratio = 0.0;
    })
    .await;
    let tries = 300;
    let gateways: Vec<_> = peal.region("eu").gateways().collect();
    let gateway = |number: usize| Gateway {
        peal: &peal,
        url: &gateways[number % gateways.len()].url,
    };
    gateway(0).register("ann", &format!("{:064x}", 1)).await;
    let workers = &peal.region("eu").workers;
    let signal = async |name: &str| {
        for worker in workers {
            worker.process.signal(name).await.unwrap();
        }
    };
    signal("STOP").await;
    interrupt_followers_of_directory(&peal, "eu").await;
    stream::iter(0..tries)
        .for_each_concurrent(CONCURRENT, |number| async move {
            let title = format!("withdrawn-{number}");
            let id = gateway(number).notify(json!({ "recipients": ["ann"] }), &title).await;
            let path = format!("notifications/{id}");
            gateway(number + 1).expect("DELETE", &path, None).await;
        })
        .await;
    signal("CONT").await;
    gateway(0).notify(json!({ "recipients": ["ann"] }), "wanted").await;
    assert_settled(&peal).await;
    let pushes = peal.simulators.apns.log().pushes();
    let titles: Vec<_> = pushes.iter().map(|push| title(&push.payload)).collect();
    assert_eq!(titles, ["wanted"], "{} of {tries} were sent", titles.len() - 1);
}

/// Kills all workers but the last, one after the other, and lets the leaders of the streams of facts change all the time.
async fn make_trouble(peal: &Peal, region: &str) {
    let client = peal.connect(region).await.unwrap();
    let workers = &peal.region(region).workers;
    let mut doomed = workers[1..].iter();
    for round in 1.. {
        for stream in [topology::RECIPIENTS, topology::DIRECTORY] {
            let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
            let answer = client.request(subject, "".into()).await;
            if round == 1 {
                let answer: Value = serde_json::from_slice(&answer.unwrap().payload).unwrap();
                assert_eq!(answer["success"], true, "{answer}");
            }
        }
        sleep(Duration::from_secs(1)).await;
        if round % 5 == 0
            && let Some(worker) = doomed.next()
        {
            worker.process.signal("KILL").await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_holds_while_workers_die_and_leaders_change() {
    let tries = 100;
    let peal = start(|plan| {
        plan.regions = vec!["eu".into()];
        plan.durability = Durability::Production;
        plan.gateways = 2;
        plan.workers = 3;
        plan.sample_ratio = 0.0;
    })
    .await;
    let wrong = tokio::select! {
        wrong = count_wrong(&peal, "eu", tries) => wrong,
        () = make_trouble(&peal, "eu") => unreachable!("trouble does not end"),
    };
    assert_eq!(wrong, BTreeMap::new(), "of {tries} each");
}

/// Tries that opt a recipient out and send to it, both in `eu`, while its home is `us`; `pause` lies in between. Returns how
/// many were sent all the same.
async fn count_sent(peal: &Peal, name: &str, tries: usize, pause: Duration) -> usize {
    let token = |number: usize| format!("{:032x}{number:032x}", name.len());
    let gateway = Gateway {
        peal,
        url: &peal.region("eu").gateway.url,
    };
    let recipients: Vec<_> = (0..tries).map(|number| format!("{name}-{number}")).collect();
    for (number, recipient) in recipients.iter().enumerate() {
        peal.register_at("us", recipient, "us", &[("apns", &token(number))])
            .await
            .unwrap();
    }
    peal.wait_known("eu", recipients.last().unwrap()).await.unwrap();
    for recipient in &recipients {
        let wanted = json!({ "channels": { "push": false } });
        let path = format!("recipients/{recipient}/preferences");
        gateway.expect("PUT", &path, Some(wanted)).await;
        sleep(pause).await;
        drop(gateway.notify(json!({ "recipients": [recipient] }), "hi").await);
    }
    assert_settled(peal).await;
    let tokens: Vec<_> = (0..tries).map(token).collect();
    let pushes = peal.simulators.apns.log().delivered();
    pushes.iter().filter(|push| tokens.contains(&push.token)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_soon_follows_the_facts_of_another_region() {
    let peal = start(|plan| plan.sample_ratio = 0.0).await;
    assert_eq!(count_sent(&peal, "later", 20, Duration::from_secs(1)).await, 0);
    let sent = count_sent(&peal, "at-once", 200, Duration::ZERO).await;
    eprintln!("{sent} of 200 overtook the fact of another region");
}
