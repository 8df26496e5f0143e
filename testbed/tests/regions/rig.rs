//! A mesh of regions, and what tests do in all of them.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::{
    audit::Audit,
    links::{Between, Trouble},
    nats,
    peal::{Peal, Plan},
};
use tokio::time::{Instant, sleep};

/// Longer than any step of these tests takes on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_mins(1);

pub(crate) async fn start(adjust: impl FnOnce(&mut Plan)) -> Peal {
    let mut plan = Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap());
    adjust(&mut plan);
    Peal::start(plan).await.unwrap()
}

/// Registers ann, who lives in eu and has one device.
pub(crate) async fn register_ann(peal: &Peal) {
    let token = format!("{:064x}", 1);
    peal.register("ann", "eu", &[("apns", &token)]).await.unwrap();
}

pub(crate) async fn assert_settled(peal: &Peal) {
    let audit = Audit::read_settled(peal, TIMEOUT).await.unwrap();
    assert!(audit.equation().is_settled(), "{}", audit.equation());
}

/// Sends from `region` and returns the notification's id.
pub(crate) async fn send(peal: &Peal, region: &str, event: &str, recipients: &[&str]) -> String {
    let body = json!({ "event_id": event, "to": { "recipients": recipients }, "push": { "title": "Hi" } });
    let answer = peal
        .expect("POST", region, "/v1/notifications", Some(&body))
        .await
        .unwrap();
    answer["notification_id"].as_str().unwrap().to_owned()
}

/// Waits until `deliveries` deliveries of a notification have ended, and returns all of them.
pub(crate) async fn wait_ended(peal: &Peal, region: &str, id: &str, deliveries: usize) -> Vec<Value> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let path = format!("/v1/notifications/{id}");
        let (_, answer) = peal.ask("GET", region, &path, None).await.unwrap();
        let found: Vec<Value> = answer["deliveries"].as_array().cloned().unwrap_or_default();
        let ended =
            |delivery: &&Value| !["parked", "attempting"].contains(&delivery["state"].as_str().unwrap_or_default());
        if found.iter().filter(ended).count() >= deliveries {
            return found;
        }
        assert!(Instant::now() < deadline, "{answer}\n{}", peal.complaints());
        sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) fn set_region_links(peal: &Peal, trouble: &Trouble) {
    let links = peal.links.iter().filter(|link| link.between == Between::Regions);
    links.for_each(|link| link.set(trouble).unwrap());
}

/// The sum of the metric `name` over the workers of `region`.
pub(crate) async fn metric(peal: &Peal, region: &str, name: &str) -> f64 {
    let mut sum = 0.0;
    for worker in &peal.region(region).workers {
        let page = peal.http.get(format!("{}/metrics", worker.url)).send().await;
        let page = page.unwrap_or_else(|error| panic!("{error}\n{}", peal.complaints()));
        let page = page.text().await.unwrap();
        let lines = page.lines().filter(|line| line.split('{').next() == Some(name));
        sum += lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum::<f64>();
    }
    sum
}

/// Waits until the cache of the only worker of `region` has applied `facts` facts.
pub(crate) async fn wait_cached(peal: &Peal, region: &str, facts: f64) {
    let deadline = Instant::now() + TIMEOUT;
    while metric(peal, region, "peal_cache_sequence").await < facts {
        assert!(Instant::now() < deadline, "{}", peal.complaints());
        sleep(Duration::from_millis(20)).await;
    }
}
