//! Ensures that an address belongs to one recipient: the one who registered it last, in whichever region; or to nobody,
//! once its provider has reported it gone. Each region removes an address from all recipients who live there, except
//! its owner in the directory.

use std::time::Duration;

use futures::{StreamExt, stream};
use shared::{
    id::{AddressId, AppId},
    nats::{facts, publish::NotStored},
    recipient::{FactName, RecipientKey},
};
use tokio::sync::mpsc;

use super::homes::{Homes, NotChanged};

/// Addresses that are settled concurrently.
const SETTLED_AT_ONCE: usize = 32;

/// A new entry of the directory is settled again after each of these delays. If an address is registered in a region
/// where its recipient does not live, the address travels on another stream than the entry, and may arrive later.
const SETTLE_AGAIN_AFTER: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(15), Duration::from_mins(2)];

/// An address that could not be settled is retried after this time.
const RETRY_FAILED_AFTER: Duration = Duration::from_secs(2);

/// How often to try while other gateways settle the same address.
const MAX_SETTLE_ATTEMPTS: usize = 4;

/// An address that more than one recipient may have.
#[derive(Debug, Clone)]
struct Contested {
    app: AppId,
    address: AddressId,
    /// How many more times to settle it after this time.
    repeats: usize,
}

/// Follows the directory and settles the ownership of its addresses until the process ends.
pub(crate) async fn run(homes: Homes) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let on_entry = |app, address, is_new: bool| {
        let repeats = if is_new { SETTLE_AGAIN_AFTER.len() } else { 0 };
        enqueue(&sender, Contested { app, address, repeats });
    };
    let following = homes
        .context
        .directory
        .clone()
        .follow(homes.context.js.clone(), on_entry);
    let settling = stream::poll_fn(|context| receiver.poll_recv(context))
        .for_each_concurrent(SETTLED_AT_ONCE, |contested| {
            settle_and_repeat(homes.clone(), contested, sender.clone())
        });
    tokio::join!(following, settling);
}

/// Settles an address now, and enqueues it again if it has repeats left or could not be settled.
async fn settle_and_repeat(homes: Homes, mut contested: Contested, sender: mpsc::UnboundedSender<Contested>) {
    let delay = match settle(&homes, &contested.app, contested.address).await {
        Ok(()) if contested.repeats == 0 => return,
        Ok(()) => {
            contested.repeats -= 1;
            SETTLE_AGAIN_AFTER[SETTLE_AGAIN_AFTER.len() - 1 - contested.repeats]
        }
        Err(error) => {
            tracing::warn!(address = %contested.address, %error, "cannot settle the owner of an address; retrying");
            RETRY_FAILED_AFTER
        }
    };
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        enqueue(&sender, contested);
    });
}

fn enqueue(sender: &mpsc::UnboundedSender<Contested>, contested: Contested) {
    // The receiver is dropped only when the process is finishing.
    drop(sender.send(contested));
}

/// Removes an address from every recipient who lives here, except the last one who registered it. A recipient who
/// registered it again after the newest entry is that one, and gets a new entry.
pub(crate) async fn settle(homes: &Homes, app: &AppId, address: AddressId) -> Result<(), NotChanged> {
    for _ in 1..MAX_SETTLE_ATTEMPTS {
        match settle_once(homes, app, address).await {
            // Another gateway has changed it meanwhile, or its recipient has registered it again.
            Err(NotChanged::Write(NotStored::Refused)) => {}
            ended => return ended,
        }
    }
    settle_once(homes, app, address).await
}

async fn settle_once(homes: &Homes, app: &AppId, address: AddressId) -> Result<(), NotChanged> {
    let owners = homes.owners(app, address).await?;
    let Some(since) = owners.since() else {
        return Ok(());
    };
    for recipient in owners.former() {
        let key = RecipientKey {
            app: app.clone(),
            recipient: recipient.clone(),
        };
        let complete = homes.context.stores.require_facts().await;
        complete.map_err(facts::NotRead::from)?;
        let Some((stored, revision)) = facts::address(&homes.context.js, &homes.context.border, &key, address).await?
        else {
            continue;
        };
        if stored.registered_at > since {
            homes
                .put_owner(owners.clone(), Some(key.recipient), stored.registered_at)
                .await?;
        } else {
            match facts::remove_unchanged(&homes.context.js, &key, FactName::Address(address), revision).await {
                Ok(_) => tracing::info!(%address, "removed an address that is gone or belongs to another recipient"),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
