//! Quotas that regions lend each other.

use std::time::Duration;

use testbed::{
    links::Trouble,
    peal::{Links, Peal},
};
use tokio::time::{Instant, sleep};

use crate::rig::{TIMEOUT, metric, send, set_region_links, start};

/// Messages a minute that the workers of `region` may send through FCM.
async fn granted_quota(peal: &Peal, region: &str) -> f64 {
    metric(peal, region, "peal_quota_granted").await
}

async fn wait_granted_quota(peal: &Peal, region: &str, wanted: impl Fn(f64) -> bool) -> f64 {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let granted = granted_quota(peal, region).await;
        if wanted(granted) {
            return granted;
        }
        assert!(
            Instant::now() < deadline,
            "{granted} in {region}\n{}",
            peal.complaints()
        );
        sleep(Duration::from_millis(100)).await;
    }
}

/// The largest number of pushes that FCM accepted within any `seconds` seconds.
fn max_pushes_within(peal: &Peal, seconds: i64) -> usize {
    let mut times: Vec<i64> = peal
        .simulators
        .fcm
        .log()
        .pushes()
        .iter()
        .map(|push| push.at_ms)
        .collect();
    times.sort_unstable();
    let within = |(first, begin): (usize, &i64)| times[first..].partition_point(|at| at - begin < seconds * 1000);
    times.iter().enumerate().map(within).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_lends_unused_quota_and_has_it_back_when_cut_off() {
    const QUOTA_PER_MINUTE: u32 = 1200;
    const SHARE_PER_MINUTE: f64 = 600.0;
    let peal = start(|plan| {
        plan.links = Links::Proxies(1);
        plan.fcm_quota = QUOTA_PER_MINUTE.try_into().ok();
    })
    .await;
    for (recipient, home) in [("ann", "eu"), ("bob", "us")] {
        let devices: Vec<String> = (0..20).map(|device| format!("fcm:{recipient}-{device}")).collect();
        let devices: Vec<(&str, &str)> = devices.iter().map(|token| ("fcm", token.as_str())).collect();
        peal.register(recipient, home, &devices).await.unwrap();
    }
    // More than twice the whole quota.
    let load = async |region: &str, recipient: &str| {
        for number in 0.. {
            send(&peal, region, &format!("{region}-{number}"), &[recipient]).await;
            sleep(Duration::from_millis(500)).await;
        }
    };
    let lending = async {
        wait_granted_quota(&peal, "eu", |granted| granted > 1.5 * SHARE_PER_MINUTE).await;
        // Not only the metric grows: more pushes arrive than eu could send with its own share.
        let deadline = Instant::now() + TIMEOUT;
        while max_pushes_within(&peal, 10) < 140 {
            assert!(
                Instant::now() < deadline,
                "{} in ten seconds",
                max_pushes_within(&peal, 10)
            );
            sleep(Duration::from_millis(200)).await;
        }
        set_region_links(&peal, &Trouble::Cut);
        wait_granted_quota(&peal, "eu", |granted| 0.0 < granted && granted <= SHARE_PER_MINUTE).await;
        tokio::select! {
            () = load("us", "bob") => (),
            granted = wait_granted_quota(&peal, "us", |granted| granted > 0.9 * SHARE_PER_MINUTE) => assert!(granted <= SHARE_PER_MINUTE),
        }
        set_region_links(&peal, &Trouble::None);
        wait_granted_quota(&peal, "eu", |granted| granted > SHARE_PER_MINUTE).await;
    };
    tokio::select! {
        () = load("eu", "ann") => (),
        () = lending => (),
    }
    assert!(
        max_pushes_within(&peal, 60) <= QUOTA_PER_MINUTE as usize,
        "{} in a minute",
        max_pushes_within(&peal, 60)
    );
    // A tenth more than the quota, for pushes that took longer to arrive than those before them.
    assert!(
        max_pushes_within(&peal, 20) <= 440,
        "{} in twenty seconds",
        max_pushes_within(&peal, 20)
    );
}
