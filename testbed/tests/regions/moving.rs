//! Recipients who move to another region.

use serde_json::json;
use testbed::providers::{Answer, Rule};

use crate::rig::{assert_settled, send, start, wait_cached, wait_ended};

#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_who_moves_keeps_everything_and_misses_nothing() {
    let peal = start(|plan| plan.workers = 1).await;
    let devices = [("apns", "a1"), ("fcm", "fcm:tablet")];
    peal.register("ann", "eu", &devices).await.unwrap();
    let opt_out = json!({ "categories": { "offers": { "push": false } } });
    peal.expect("PUT", "eu", "/v1/recipients/ann/preferences", Some(&opt_out))
        .await
        .unwrap();
    // Profile, two devices, preferences.
    wait_cached(&peal, "eu", 4.0).await;
    // A retry of this notification waits in eu while ann moves.
    let busy = Answer::reason("ServiceUnavailable");
    peal.simulators
        .apns
        .script()
        .add(Rule::token("a1").times(1).answer(busy))
        .unwrap();
    let parked = send(&peal, "eu", "parked", &["ann"]).await;
    wait_ended(&peal, "eu", &parked, 1).await;
    let ((), moved) = tokio::join!(
        async {
            for number in 0..40 {
                send(&peal, "eu", &format!("meanwhile-{number}"), &["ann"]).await;
            }
        },
        async {
            let home = json!({ "home": "us" });
            peal.expect("PUT", "eu", "/v1/recipients/ann", Some(&home))
                .await
                .unwrap()
        }
    );
    assert_eq!(moved["home"], "us");
    let after = send(&peal, "eu", "after", &["ann"]).await;
    for (event, region) in [(&parked, None), (&after, Some("us"))] {
        let deliveries = wait_ended(&peal, "eu", event, 2).await;
        assert_eq!(deliveries.len(), 2, "{deliveries:?}");
        for delivery in deliveries {
            assert_eq!(delivery["state"], "delivered", "{delivery}");
            assert!(region.is_none_or(|region| delivery["region"] == region), "{delivery}");
        }
    }
    let offer = json!({ "to": { "recipients": ["ann"] }, "category": "offers", "push": { "title": "Sale" } });
    let offer = peal
        .expect("POST", "us", "/v1/notifications", Some(&offer))
        .await
        .unwrap();
    let deliveries = wait_ended(&peal, "us", offer["notification_id"].as_str().unwrap(), 1).await;
    assert_eq!(deliveries[0]["reason"], "opted_out", "preferences moved along");
    assert_settled(&peal).await;
    let delivered = peal.simulators.apns.stats().delivered + peal.simulators.fcm.stats().delivered;
    assert_eq!(
        delivered,
        2 * 42,
        "each of 42 notifications once to each of two devices"
    );
    assert_eq!(
        peal.simulators.apns.stats().duplicates + peal.simulators.fcm.stats().duplicates,
        0
    );
}
