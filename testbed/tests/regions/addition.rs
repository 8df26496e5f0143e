//! A region that is added while the others run.

use testbed::peal::Peal;

use crate::rig::{assert_settled, send, start, wait_ended};

/// The process ids of all workers and gateways of `regions`.
fn processes(peal: &Peal, regions: &[&str]) -> Vec<Option<u32>> {
    let programs = regions.iter().map(|name| peal.region(name)).flat_map(|region| {
        let programs = region.workers.iter().chain([&region.gateway]);
        programs.map(|program| program.process.id())
    });
    programs.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_added_while_the_others_run() {
    let mut peal = start(|plan| {
        plan.workers = 1;
        plan.later = vec!["ap".into()];
    })
    .await;
    let before = processes(&peal, &["eu", "us"]);
    peal.add_region("ap").await.unwrap();
    peal.register("kim", "ap", &[("apns", &format!("{:064x}", 1))])
        .await
        .unwrap();
    peal.register("ann", "eu", &[("apns", &format!("{:064x}", 2))])
        .await
        .unwrap();
    // In both directions; each is accepted where the recipient does not live.
    peal.wait_known("eu", "kim").await.unwrap();
    peal.wait_known("ap", "ann").await.unwrap();
    let to_ap = send(&peal, "eu", "to-ap", &["kim"]).await;
    let to_eu = send(&peal, "ap", "to-eu", &["ann"]).await;
    assert_eq!(wait_ended(&peal, "eu", &to_ap, 1).await[0]["state"], "delivered");
    assert_eq!(wait_ended(&peal, "ap", &to_eu, 1).await[0]["state"], "delivered");
    assert_eq!(processes(&peal, &["eu", "us"]), before, "no process was restarted");
    assert_settled(&peal).await;
}
