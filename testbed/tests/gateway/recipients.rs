//! Recipients, addresses and preferences, stored as facts in the home region.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::{
    address::Target,
    clock::Clock,
    nats::{border::Border, config::Config, directory::Directory, facts, topology},
    provider::Provider,
    recipient::{Fact, MAX_ADDRESSES, MAX_TOPICS, Membership, Recipient},
    testing,
};

use tokio::time::timeout;

use crate::rig::{Rig, TIMEOUT, app, recipient, region, send};

/// Facts of this region need no signature, so any key will do.
fn border() -> Border {
    Border::new(Config::new(testing::mesh_key()))
}

async fn stored(rig: &Rig, name: &str) -> Recipient {
    facts::read(&rig.js, &border(), &recipient(name)).await.unwrap()
}

async fn register(rig: &Rig, name: &str, token: &str) -> (u16, Value) {
    let body = json!({ "provider": "fcm", "token": token });
    let answer = rig.ask("POST", &format!("/v1/recipients/{name}/addresses"), body).await;
    (answer.status, answer.body)
}

/// Writes facts as a gateway of a version without limits did.
async fn write(rig: &Rig, name: &str, facts: impl Iterator<Item = Fact>) {
    for fact in facts {
        facts::write(
            &rig.js,
            &border(),
            &region("eu"),
            &region("eu"),
            &recipient(name),
            &fact,
        )
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_has_a_limited_number_of_addresses_and_topics() {
    let rig = Rig::start().await;
    let field = |answer: &crate::rig::Answer| answer.body["errors"][0]["field"].clone();
    for number in 0..MAX_ADDRESSES {
        assert_eq!(register(&rig, "ann", &format!("phone-{number}")).await.0, 201);
    }
    let (status, problem) = register(&rig, "ann", "one-more").await;
    assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("addresses")));
    assert_eq!(
        register(&rig, "ann", "phone-0").await.0,
        200,
        "a known address is refreshed"
    );
    assert_eq!(register(&rig, "bob", "phone-0").await.0, 201, "and may move away");
    assert_eq!(register(&rig, "ann", "one-more").await.0, 201, "which makes room");

    let since = Timestamp::UNIX_EPOCH;
    let member = |number| Fact::Topic(format!("t{number}").parse().unwrap(), Membership { since, moved: None });
    write(&rig, "ann", (0..MAX_TOPICS).map(member)).await;
    let put = async |topic: &str| {
        rig.ask("PUT", &format!("/v1/recipients/ann/topics/{topic}"), Value::Null)
            .await
    };
    let refused = put("one-more").await;
    assert_eq!((refused.status, field(&refused)), (422, json!("topics")));
    assert_eq!(put("t0").await.status, 200, "a known membership is written again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_with_too_many_facts_is_still_read_and_erased() {
    const MANY: usize = 1200;
    let rig = Rig::start().await;
    assert_eq!(register(&rig, "ann", "phone").await.0, 201);
    let address = |number| Fact::Address(testing::address(&app(), Provider::Fcm, &format!("old-{number}")));
    write(&rig, "ann", (0..MANY).map(address)).await;
    let since = Timestamp::UNIX_EPOCH;
    let member = |number| Fact::Topic(format!("t{number}").parse().unwrap(), Membership { since, moved: None });
    write(&rig, "ann", (0..MANY).map(member)).await;

    let get = async |path: &str| rig.ask("GET", &format!("/v1/recipients/ann{path}"), Value::Null).await;
    assert_eq!(get("").await.body["addresses"], MANY + 1);
    let count = |answer: &Value, list: &str| answer[list].as_array().unwrap().len();
    assert_eq!(count(&get("/addresses").await.body, "addresses"), MANY + 1);
    assert_eq!(count(&get("/topics").await.body, "topics"), MANY);
    let (status, problem) = register(&rig, "ann", "one-more").await;
    assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("addresses")));
    assert_eq!(
        register(&rig, "ann", "old-7").await.0,
        201,
        "what is there can be refreshed"
    );

    let removed = rig.ask("DELETE", "/v1/recipients/ann", Value::Null).await;
    assert_eq!(removed.status, 204, "{removed:?}");
    assert_eq!(get("").await.status, 404);
    // Removals leave markers, of which there are now more than one answer holds.
    assert_eq!(register(&rig, "ann", "phone").await.0, 201);
    assert_eq!(get("").await.body["addresses"], 1);
    assert_eq!(count(&get("/topics").await.body, "topics"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_replaced_whole_and_keeps_its_home() {
    let rig = Rig::start().await;
    let path = "/v1/recipients/m%C3%BCller%2F1";
    let put = async |body| rig.ask("PUT", path, body).await;
    let answer = put(json!({ "locale": "de-CH", "timezone": "Europe/Zurich" })).await;
    assert_eq!((answer.status, &answer.body["recipient_id"]), (201, &json!("müller/1")));
    assert_eq!(
        (&answer.body["home"], &answer.body["locale"]),
        (&json!("eu"), &json!("de-CH"))
    );
    let answer = put(json!({ "home": "eu" })).await;
    assert_eq!((answer.status, answer.body.get("locale")), (200, None));
    // No server runs us in this test.
    let answer = put(json!({ "home": "us" })).await;
    assert_eq!((answer.status, answer.code()), (503, "home_unreachable"));
    let answer = put(json!({ "home": "mars" })).await;
    assert_eq!(
        (answer.status, &answer.body["errors"][0]["field"]),
        (422, &json!("home"))
    );
    let answer = rig.ask("GET", path, Value::Null).await;
    assert_eq!((answer.status, &answer.body["addresses"]), (200, &json!(0)));
    assert_eq!(stored(&rig, "müller/1").await.profile.unwrap().home, region("eu"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_belongs_to_the_recipient_who_registered_it_last() {
    let rig = Rig::start().await;
    let (status, first) = register(&rig, "ann", "phone").await;
    assert_eq!(status, 201);
    assert_eq!(
        register(&rig, "ann", "tablet").await.0,
        201,
        "a known recipient gets a second device"
    );
    assert_eq!(
        register(&rig, "ann", "phone").await.0,
        200,
        "registering again refreshes"
    );
    assert_eq!(stored(&rig, "ann").await.addresses.len(), 2);

    let (status, moved) = register(&rig, "bob", "phone").await;
    assert_eq!((status, &moved["address_id"]), (201, &first["address_id"]));
    let tokens = |known: Recipient| {
        known
            .addresses
            .iter()
            .map(|(address, _)| match &address.target {
                Target::Fcm(target) => target.token.reveal().to_owned(),
                Target::Apns(target) => target.token.reveal().to_owned(),
                other => panic!("a device was registered, not {other:?}"),
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(tokens(stored(&rig, "ann").await), ["tablet"]);
    assert_eq!(tokens(stored(&rig, "bob").await), ["phone"]);
    assert_eq!(register(&rig, "ann", "phone").await.0, 201, "the token returns to ann");
    assert!(stored(&rig, "bob").await.addresses.is_empty());

    let list = rig.ask("GET", "/v1/recipients/ann/addresses", Value::Null).await.body;
    assert_eq!(list["addresses"].as_array().unwrap().len(), 2);
    assert_eq!(
        list["addresses"][0]["address_id"], first["address_id"],
        "the newest first"
    );
    assert!(!list.to_string().contains("phone"), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_and_recipients_are_removed() {
    let rig = Rig::start().await;
    let delete = async |path: &str| rig.ask("DELETE", path, Value::Null).await.status;
    let (_, phone) = register(&rig, "ann", "phone").await;
    register(&rig, "ann", "tablet").await;
    register(&rig, "ann", "watch").await;
    let one = format!("/v1/recipients/ann/addresses/{}", phone["address_id"].as_str().unwrap());
    assert_eq!((delete(&one).await, delete(&one).await), (204, 404));
    assert_eq!(stored(&rig, "ann").await.addresses.len(), 2);
    assert_eq!(delete("/v1/recipients/ann/addresses").await, 204);
    assert!(stored(&rig, "ann").await.addresses.is_empty());
    assert!(stored(&rig, "ann").await.profile.is_some());
    register(&rig, "ann", "phone").await;
    assert_eq!(delete("/v1/recipients/ann").await, 204);
    assert_eq!(stored(&rig, "ann").await, Recipient::default());
    assert_eq!(
        (
            delete("/v1/recipients/ann").await,
            delete("/v1/recipients/nobody").await
        ),
        (404, 404)
    );
    let answer = rig.ask("GET", "/v1/recipients/ann", Value::Null).await;
    assert_eq!((answer.status, answer.code()), (404, "not_found"));

    // After a deletion nothing earlier counts: neither the owner of the token nor the home of the recipient.
    assert_eq!(register(&rig, "ann", "phone").await.0, 201);
    assert_eq!(
        rig.ask("GET", "/v1/recipients/ann", Value::Null).await.body["addresses"],
        1
    );
    assert_eq!(delete("/v1/recipients/ann").await, 204);
    assert_eq!(
        rig.ask("PUT", "/v1/recipients/ann", json!({ "home": "us" }))
            .await
            .status,
        201
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opt_out_is_stored_even_before_there_is_an_address() {
    let rig = Rig::start().await;
    let path = "/v1/recipients/ann/preferences";
    let wanted = json!({ "channels": { "push": false }, "categories": { "offers": { "email": false } } });
    let answer = rig.ask("PUT", path, wanted.clone()).await;
    assert_eq!((answer.status, &answer.body), (200, &wanted));
    assert_eq!(rig.ask("GET", path, Value::Null).await.body, wanted);
    let preferences = stored(&rig, "ann").await.preferences;
    assert_eq!(serde_json::to_value(preferences).unwrap(), wanted);
    rig.ask("PUT", path, json!({})).await;
    let replaced = stored(&rig, "ann").await.preferences;
    assert!(replaced.are_empty(), "preferences are replaced whole");
    for (body, field) in [
        (json!({ "channels": { "fax": false } }), "channels"),
        (json!({ "channels": { "push": "no" } }), "channels"),
        (json!({ "quiet": true }), "quiet"),
    ] {
        let answer = rig.ask("PUT", path, body).await;
        let named = answer.body["errors"][0]["field"].as_str().unwrap().to_owned();
        assert!(answer.status == 422 && named.starts_with(field), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_changes_of_preferences_at_the_same_time_both_count() {
    let rig = Rig::start().await;
    let other = rig.another_gateway(STANDARD.encode([7; 32])).await;
    let path = "/v1/recipients/ann/preferences";
    let urls = [rig.url(), format!("http://{}", other.addr())];
    let ask = async |number: usize, body: Value| {
        let url = format!("{}{path}", urls[number % 2]);
        let request = rig.http.patch(url).bearer_auth(&rig.key).json(&body);
        send(request.header("content-type", "application/merge-patch+json")).await
    };
    for round in 0..10 {
        let at_once = (0..4).map(|number| {
            let category = format!("c{round}-{number}");
            ask(number, json!({ "categories": { category: { "push": false } } }))
        });
        for answer in join_all(at_once).await {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    let categories = &rig.ask("GET", path, Value::Null).await.body["categories"];
    assert_eq!(categories.as_object().unwrap().len(), 40, "{categories}");

    let removed = rig.ask(
        "PATCH",
        path,
        json!({ "categories": null, "topics": { "news": false } }),
    );
    assert_eq!(
        removed.await.body,
        json!({ "channels": {}, "categories": {}, "topics": { "news": false } })
    );
    for (body, field) in [
        (json!({ "muted_until": "2030-01-01T00:00:00Z" }), "muted_until"),
        (json!({ "channels": { "push": 1 } }), "channels.push"),
        (json!({ "topics": { "News!": false } }), "topics"),
        (json!({ "quiet": null }), "quiet"),
    ] {
        let answer = rig.ask("PATCH", path, body).await;
        let named = answer.body["errors"][0]["field"].as_str().unwrap().to_owned();
        assert!(answer.status == 422 && named.starts_with(field), "{answer:?}");
    }
    let many = (0..257).map(|number| (format!("c{number}"), json!({ "sms": false })));
    let many: serde_json::Map<String, Value> = many.collect();
    let answer = rig.ask("PATCH", path, json!({ "categories": many })).await;
    assert_eq!(
        (answer.status, answer.body["errors"][0]["field"].as_str()),
        (422, Some("categories"))
    );

    // No server runs us. What is merged must be read, so the change is not kept for later.
    let far = json!({ "home": "us" });
    assert_eq!(rig.ask("PUT", "/v1/recipients/far", far).await.status, 201);
    let answer = rig
        .ask("PATCH", "/v1/recipients/far/preferences", json!({ "muted": true }))
        .await;
    assert_eq!((answer.status, answer.code()), (503, "home_unreachable"));
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_for_a_home_that_is_cut_off_are_stored_and_cannot_be_read() {
    let rig = Rig::start().await;
    // No server runs us, so its facts wait in the outbox.
    assert_eq!(
        rig.ask("PUT", "/v1/recipients/far", json!({ "home": "us" }))
            .await
            .status,
        201
    );
    assert_eq!(register(&rig, "far", "phone").await.0, 201);
    assert_eq!(rig.count(topology::OUTBOX).await, 2);
    let answer = rig.ask("GET", "/v1/recipients/far/addresses", Value::Null).await;
    assert_eq!((answer.status, answer.code()), (503, "home_unreachable"));
    assert!(answer.header("retry-after").is_some());
}

/// Each is answered by what was stored before it asked, also if the caller who reads for it is dropped in between.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_ask_the_directory_together_miss_nothing_that_was_stored_before() {
    let rig = Rig::start().await;
    // What it does not read, it does not know: it does not follow the stream.
    let (writer, reader) = (Directory::new(border()), Directory::new(border()));
    let (eu, us) = (region("eu"), region("us"));
    for round in 0..3 {
        let at = Clock::system().now();
        let asking = (0..400).map(|number| {
            let (rig, writer, reader, eu, us) = (&rig, &writer, &reader, &eu, &us);
            async move {
                let key = recipient(&format!("together-{number}"));
                let home = if (number + round) % 2 == 0 { eu } else { us };
                writer.put_home(&rig.js, eu, &key, home, at).await.unwrap();
                let asked = reader.current_home(&rig.js, eu, &key);
                if number % 7 == 0 {
                    // It may be the one that reads for the others.
                    drop(timeout(Duration::from_micros(300), asked).await);
                } else {
                    assert_eq!(timeout(TIMEOUT, asked).await.unwrap().unwrap().as_ref(), Some(home));
                }
            }
        });
        join_all(asking).await;
    }
    assert_eq!(
        reader.current_home(&rig.js, &eu, &recipient("nobody")).await.unwrap(),
        None
    );
}
