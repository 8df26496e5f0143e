//! Recipients who move to another region.

use serde_json::json;
use shared::{
    channel::{Channel, Class},
    clock::Clock,
    id::JobId,
    nats::{connect, envelope, publish, subject::Lane},
    proof::Claims,
};
use testbed::{
    peal::APP,
    providers::{Answer, Rule},
};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_region_that_never_knew_its_recipient_goes_to_their_home() {
    let peal = start(|plan| plan.workers = 1).await;
    let token = format!("{:064x}", 7);
    peal.register("bob", "us", &[("apns", &token)]).await.unwrap();
    peal.wait_known("eu", "bob").await.unwrap();
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let lane = Lane {
        channel: Channel::Push,
        region: "eu".parse().unwrap(),
        class: Class::Normal,
        app: APP.parse().unwrap(),
    };
    for (event, recipient) in [("astray", "bob"), ("to-nobody", "nobody")] {
        let body = json!({ "event_id": event, "recipient": recipient, "push": { "title": "Hi" } });
        let body = serde_json::to_vec(&body).unwrap();
        let (event, at) = (event.parse().unwrap(), Clock::system().now());
        let id = JobId::of(&peal.ids, &lane.app, &event, &recipient.parse().unwrap(), lane.channel);
        let mut headers = envelope::headers(id, at, &lane.region);
        let claims = Claims {
            app: &lane.app,
            channel: lane.channel,
            class: lane.class,
            event: &event,
            origin: &lane.region,
            payload: &body,
        };
        let proof = peal.prover().unwrap().work(&claims, at);
        headers.insert(envelope::PROOF, proof.to_string());
        publish::store(&js, lane.notify(), headers, body.into()).await.unwrap();
    }
    assert_settled(&peal).await;
    assert_eq!(peal.simulators.apns.log().delivered_to(&token).len(), 1);
    assert_eq!(peal.simulators.apns.stats().requests, 1);
}
