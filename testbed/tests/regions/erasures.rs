//! Erasures that a region does once it is no longer cut off, and what waited when it did.

use serde_json::{Value, json};
use testbed::{
    links::Trouble,
    peal::{Links, Peal},
    providers::{Answer, Rule},
};
use tokio::time::{Duration, Instant, sleep};

use crate::rig::{TIMEOUT, assert_settled, send, set_region_links, start, wait_ended};

async fn until(peal: &Peal, region: &str, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let (_, answer) = peal.ask("GET", region, path, None).await.unwrap();
        if holds(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{answer}\n{}", peal.complaints());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_was_cut_off_erases_afterwards_and_cancels_what_waits() {
    let peal = start(|plan| {
        plan.workers = 1;
        plan.links = Links::Proxies(1);
    })
    .await;
    let token = format!("{:064x}", 7);
    peal.register("ann", "us", &[("apns", &token)]).await.unwrap();
    peal.wait_known("us", "ann").await.unwrap();
    let busy = Rule::token(&token).answer(Answer::reason("ServiceUnavailable"));
    peal.simulators.apns.script().add(busy).unwrap();
    let waits = send(&peal, "us", "waits", &["ann"]).await;
    let path = format!("/v1/notifications/{waits}");
    until(&peal, "us", &path, |status| {
        status["deliveries"][0]["state"] == "parked"
    })
    .await;

    set_region_links(&peal, &Trouble::Cut);
    let answer = peal
        .expect("POST", "eu", "/v1/recipients/ann/erase", None)
        .await
        .unwrap();
    let proof = format!("/v1/erasures/{}", answer["erasure_id"].as_str().unwrap());
    let cut = until(&peal, "eu", &proof, |proof| proof["regions"]["eu"]["state"] == "done").await;
    assert_eq!(
        cut["regions"]["us"],
        json!({ "state": "pending", "facts": 0, "dead_letters": 0 })
    );
    assert_eq!(cut["state"], "pending");
    set_region_links(&peal, &Trouble::None);
    let done = until(&peal, "eu", &proof, |proof| proof["state"] == "done").await;
    assert_eq!(done["regions"]["us"]["facts"], 2, "profile and address: {done}");
    for region in ["eu", "us"] {
        let (status, _) = peal.ask("GET", region, "/v1/recipients/ann", None).await.unwrap();
        assert_eq!(status, 404, "{region}");
    }

    // The same person registers the same device again. What waited for the former registration is not sent to it.
    peal.simulators.apns.script().clear();
    peal.register("ann", "us", &[("apns", &token)]).await.unwrap();
    let ended = wait_ended(&peal, "us", &waits, 1).await;
    assert_eq!(
        (&ended[0]["state"], &ended[0]["reason"]),
        (&json!("cancelled"), &json!("erased")),
        "{ended:?}"
    );
    assert_eq!(peal.simulators.apns.log().delivered_to(&token).len(), 0);
    let again = send(&peal, "us", "again", &["ann"]).await;
    assert_eq!(wait_ended(&peal, "us", &again, 1).await[0]["state"], "delivered");
    assert_settled(&peal).await;
}
