//! A region that comes while the others run.

use testbed::peal::Peal;

use crate::rig::{assert_settled, ended, send, start};

/// Process ids of everything that runs in `regions`.
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
    // Both ways, each accepted where the recipient does not live.
    peal.wait_known("eu", "kim").await.unwrap();
    peal.wait_known("ap", "ann").await.unwrap();
    let to_ap = send(&peal, "eu", "to-ap", &["kim"]).await;
    let to_eu = send(&peal, "ap", "to-eu", &["ann"]).await;
    assert_eq!(ended(&peal, "eu", &to_ap, 1).await[0]["state"], "delivered");
    assert_eq!(ended(&peal, "ap", &to_eu, 1).await[0]["state"], "delivered");
    assert_eq!(processes(&peal, &["eu", "us"]), before, "nothing was started again");
    assert_settled(&peal).await;
}
