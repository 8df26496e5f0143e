//! The hub keeps regions from publishing for each other.

use std::time::Duration;

use futures::StreamExt;
use testbed::nats::{self, Mesh};
use tokio::time::timeout;

use crate::rig::{TIMEOUT, settings};

/// Edits that remove the denials from a region's leaf link, as an attacker who controls the region's servers could.
fn without_denials() -> Vec<(String, String)> {
    let config = include_str!("../../../deploy/nats/region.conf");
    ["deny_exports: [", "deny_imports: ["]
        .map(|list| {
            let (_, rest) = config.split_once(list).unwrap();
            let (denied, _) = rest.split_once(']').unwrap();
            (format!("{list}{denied}]"), String::new())
        })
        .to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_lets_no_region_publish_for_another() {
    let settings = nats::Settings {
        edits: without_denials(),
        beside_former: false,
        ..settings()
    };
    let mesh = Mesh::start(settings, &["eu", "us"]).await.unwrap();
    let eu = mesh.region("eu").connect_as_test().await.unwrap();
    let hub = mesh.hub().connect_as_test().await.unwrap();
    let us = mesh.region("us").connect_as_test().await.unwrap();
    let forbidden = [
        "notify.push.us.normal.shop",
        "due.push.us.normal.shop",
        "receipt.us.us.shop",
        "dead.push.us.shop",
        "directory.us.home.shop.ann",
        "idempotency.us.shop.key",
        "$KV.recipients.shop.ann.profile",
        "$KV.config.app.shop",
        "$JS.ACK.NOTIFY.push-normal.1.1.1.1.0",
        "$JS.API.STREAM.DELETE.NOTIFY",
    ];
    let of_regions = [
        "$JS.us.API.STREAM.DELETE.NOTIFY",
        "$JS.us.API.STREAM.PURGE.NOTIFY",
        "$JS.us.API.CONSUMER.MSG.NEXT.NOTIFY.push-normal",
        "$JS.us.API.DIRECT.GET.KV_recipients",
        "$JS.us.API.DIRECT.GET.DEAD",
        "$JS.us.API.STREAM.MSG.DELETE.DEAD",
        "$JS.us.API.CONSUMER.CREATE.NOTIFY.mine",
        "$JS.hub.API.STREAM.DELETE.KV_config",
        "$JS.hub.API.$KV.config.app.shop",
    ];
    // From a region to the hub and to another region, and from the hub to a region.
    for (from, to, inbox, more) in [
        (&eu, &hub, "_INBOX.hub.test", &of_regions[..]),
        (&eu, &us, "_INBOX.us.test", &of_regions[..7]),
        (&hub, &us, "_INBOX.us.test", &[]),
    ] {
        let mut heard = Vec::new();
        for subject in forbidden.iter().chain(more).chain([&inbox]) {
            heard.push(to.subscribe(*subject).await.unwrap());
        }
        let mut heard = futures::stream::select_all(heard);
        // Once a message arrives on the last subscription, the servers know that one and all before it.
        timeout(TIMEOUT, async {
            loop {
                from.publish(inbox, "known".into()).await.unwrap();
                if timeout(Duration::from_millis(100), heard.next()).await.is_ok() {
                    break;
                }
            }
        })
        .await
        .unwrap();
        for subject in forbidden.iter().chain(more) {
            from.publish(*subject, "forged".into()).await.unwrap();
        }
        from.publish(inbox, "last".into()).await.unwrap();
        loop {
            let message = timeout(TIMEOUT, heard.next()).await.unwrap().unwrap();
            assert_eq!(message.subject.as_str(), inbox);
            if message.payload == "last" {
                break;
            }
        }
    }
}
