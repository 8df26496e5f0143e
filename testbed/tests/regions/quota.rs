//! Quotas that regions lend each other.

use std::time::Duration;

use testbed::{
    faults::Trouble,
    peal::{Links, Peal},
};
use tokio::time::{Instant, sleep};

use crate::rig::{PATIENCE, metric, send, set_ways, start};

/// Messages a minute that the workers of `region` may send through FCM.
async fn granted(peal: &Peal, region: &str) -> f64 {
    metric(peal, region, "peal_quota_granted").await
}

async fn wait_granted(peal: &Peal, region: &str, wanted: impl Fn(f64) -> bool) -> f64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let granted = granted(peal, region).await;
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

/// The most pushes that FCM took within any `seconds`.
fn most_within(peal: &Peal, seconds: i64) -> usize {
    let mut times: Vec<i64> = peal.fcm.log().pushes().iter().map(|push| push.at_ms).collect();
    times.sort_unstable();
    let within = |(first, begin): (usize, &i64)| times[first..].partition_point(|at| at - begin < seconds * 1000);
    times.iter().enumerate().map(within).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_lends_of_its_quota_what_it_does_not_need_and_has_it_back_when_cut_off() {
    const QUOTA: u32 = 1200;
    const SHARE: f64 = 600.0;
    let peal = start(|plan| {
        plan.links = Links::Proxies(1);
        plan.fcm_quota = QUOTA.try_into().ok();
    })
    .await;
    for (recipient, home) in [("ann", "eu"), ("bob", "us")] {
        let devices: Vec<String> = (0..20).map(|device| format!("fcm:{recipient}-{device}")).collect();
        let devices: Vec<(&str, &str)> = devices.iter().map(|token| ("fcm", token.as_str())).collect();
        peal.register(recipient, home, &devices).await.unwrap();
    }
    // More than twice what the whole quota allows.
    let load = async |region: &str, recipient: &str| {
        for number in 0.. {
            send(&peal, region, &format!("{region}-{number}"), &[recipient]).await;
            sleep(Duration::from_millis(500)).await;
        }
    };
    let lent = async {
        wait_granted(&peal, "eu", |granted| granted > 1.5 * SHARE).await;
        // It is not only said: more get through than eu could send alone.
        let deadline = Instant::now() + PATIENCE;
        while most_within(&peal, 10) < 140 {
            assert!(Instant::now() < deadline, "{} in ten seconds", most_within(&peal, 10));
            sleep(Duration::from_millis(200)).await;
        }
        set_ways(&peal, &Trouble::Cut);
        wait_granted(&peal, "eu", |granted| 0.0 < granted && granted <= SHARE).await;
        tokio::select! {
            () = load("us", "bob") => (),
            granted = wait_granted(&peal, "us", |granted| granted > 0.9 * SHARE) => assert!(granted <= SHARE),
        }
        set_ways(&peal, &Trouble::None);
        wait_granted(&peal, "eu", |granted| granted > SHARE).await;
    };
    tokio::select! {
        () = load("eu", "ann") => (),
        () = lent => (),
    }
    assert!(
        most_within(&peal, 60) <= QUOTA as usize,
        "{} in a minute",
        most_within(&peal, 60)
    );
    // A tenth for pushes that were on their way for longer than those before them.
    assert!(
        most_within(&peal, 20) <= 440,
        "{} in twenty seconds",
        most_within(&peal, 20)
    );
}
