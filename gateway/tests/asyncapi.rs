//! `docs/asyncapi.yaml` agrees with the code.

use shared::nats::subject;

const DOCUMENT: &str = include_str!("../../docs/asyncapi.yaml");

#[test]
fn the_document_is_up_to_date() {
    assert!(
        DOCUMENT == gateway::documents::asyncapi::document(),
        "docs/asyncapi.yaml is out of date; run: cargo run -p peal-gateway -- asyncapi > docs/asyncapi.yaml"
    );
}

#[test]
fn the_documented_subjects_are_parsed() {
    let addresses = DOCUMENT
        .lines()
        .filter_map(|line| line.trim().strip_prefix("address: "))
        .map(|address| address.trim_matches('"').replace("{app}", "shop"))
        .filter(|address| address.starts_with("send."));
    let accounts: Vec<_> = addresses
        .map(|address| subject::account_of(&address).map(str::to_owned))
        .collect();
    assert_eq!(accounts, [Some("shop".to_owned()), Some("shop".to_owned())]);
}
