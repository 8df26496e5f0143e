//! `docs/asyncapi.yaml` agrees with the code.

use shared::nats::subject::Lane;

const DOCUMENT: &str = include_str!("../../docs/asyncapi.yaml");

#[test]
fn the_document_is_up_to_date() {
    assert!(
        DOCUMENT == gateway::documents::asyncapi::document(),
        "docs/asyncapi.yaml is out of date; run: cargo run -p peal-gateway -- asyncapi > docs/asyncapi.yaml"
    );
}

#[test]
fn the_documented_subject_is_parsed() {
    let address = DOCUMENT
        .lines()
        .filter_map(|line| line.trim().strip_prefix("address: "))
        .map(|address| address.trim_matches('"'))
        .find(|address| address.starts_with("notify."))
        .expect("the channel of jobs has an address");
    let filled = address
        .replace("{channel}", "push")
        .replace("{region}", "eu")
        .replace("{class}", "bulk")
        .replace("{app}", "shop");
    let lane = Lane::parse(&filled).expect("the filled address is a lane");
    assert_eq!(lane.notify(), filled);
    assert_eq!(
        (lane.region.as_str(), lane.class.as_str(), lane.app.as_str()),
        ("eu", "bulk", "shop")
    );
}

#[test]
fn the_example_is_a_valid_job() {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", "order-42-shipped");
    let payload = br#"{"recipient":"ann","push":{"title":"Shipped","body":"Your order is on its way."}}"#;
    for text in ["order-42-shipped", "Shipped", "Your order is on its way."] {
        assert!(DOCUMENT.contains(text), "the example changed; change this test with it");
    }
    let now = jiff::Timestamp::UNIX_EPOCH;
    let here = "eu".parse().expect("a region");
    shared::nats::envelope::open(
        "notify.push.eu.normal.shop",
        &headers,
        payload,
        now,
        &here,
        &shared::id_key::IdKey::unkeyed(),
    )
    .expect("the documented example is a valid job");
}
