//! Sees to it that an address serves one recipient: the one who registered it last, wherever that was, and nobody once
//! its provider called it gone. What the directory says of an address takes it from everybody else who lives here.

use std::time::Duration;

use futures::{StreamExt, stream};
use shared::{
    id::{AddressId, AppId, RecipientId},
    nats::{
        directory::{Ownership, ownerships},
        facts::{self, NotRead},
        publish::NotStored,
    },
    recipient::{FactName, RecipientKey},
};
use tokio::sync::mpsc;

use super::homes::Homes;

/// Addresses that are settled at one time.
const SETTLED_AT_ONCE: usize = 32;

/// When news is looked at again: an address that was registered where its recipient does not live comes on another stream
/// than the word that it is someone else's, and perhaps later.
const SETTLE_AGAIN_AFTER: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(15), Duration::from_mins(2)];

/// When an address that could not be settled is tried again.
const RETRY_FAILED_AFTER: Duration = Duration::from_secs(2);

/// An address that more recipients than one may have.
#[derive(Debug, Clone)]
struct Contested {
    app: AppId,
    address: AddressId,
    /// How often it will be looked at again.
    looks: usize,
}

#[derive(Debug, thiserror::Error)]
enum Unsettled {
    #[error(transparent)]
    Read(#[from] NotRead),
    #[error(transparent)]
    Write(#[from] NotStored),
}

/// Follows the directory, and settles whose its addresses are, for ever.
pub(crate) async fn run(homes: Homes) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let news = |app, address, is_news: bool| {
        let looks = if is_news { SETTLE_AGAIN_AFTER.len() } else { 0 };
        tell(&sender, Contested { app, address, looks });
    };
    let following = homes.context.directory.clone().follow(homes.context.js.clone(), news);
    let settling = stream::poll_fn(|context| receiver.poll_recv(context))
        .for_each_concurrent(SETTLED_AT_ONCE, |contested| {
            look(homes.clone(), contested, sender.clone())
        });
    tokio::join!(following, settling);
}

/// Settles it now, and again later if that is due.
async fn look(homes: Homes, mut contested: Contested, sender: mpsc::UnboundedSender<Contested>) {
    let rest = match settle(&homes, &contested.app, contested.address).await {
        Ok(()) if contested.looks == 0 => return,
        Ok(()) => {
            contested.looks -= 1;
            SETTLE_AGAIN_AFTER[SETTLE_AGAIN_AFTER.len() - 1 - contested.looks]
        }
        Err(error) => {
            tracing::warn!(address = %contested.address, %error, "whose an address is could not be settled; tried again");
            RETRY_FAILED_AFTER
        }
    };
    tokio::spawn(async move {
        tokio::time::sleep(rest).await;
        tell(&sender, contested);
    });
}

fn tell(sender: &mpsc::UnboundedSender<Contested>, contested: Contested) {
    // Nobody listens only when the process is finishing.
    drop(sender.send(contested));
}

/// Settles whose an address is, as far as that can be done at once.
pub(crate) async fn settle_now(homes: &Homes, app: &AppId, address: AddressId) {
    if let Err(error) = settle(homes, app, address).await {
        tracing::debug!(%address, %error, "whose an address is will be settled later");
    }
}

/// Takes an address from everybody who lives here and is not the last who registered it. Whoever registered it again after
/// the newest word is that.
async fn settle(homes: &Homes, app: &AppId, address: AddressId) -> Result<(), Unsettled> {
    let entries = ownerships(&homes.context.js, app, address)
        .await
        .map_err(NotRead::from)?;
    let Some(newest) = entries.iter().max_by_key(|entry| (entry.at, &entry.is)) else {
        return Ok(());
    };
    for recipient in losers(&entries, newest) {
        let key = RecipientKey {
            app: app.clone(),
            recipient,
        };
        let Some((kept, revision)) = facts::address(&homes.context.js, &key, address).await? else {
            continue;
        };
        if kept.registered_at > newest.at {
            homes
                .put_owner(app, address, Some(key.recipient), kept.registered_at)
                .await?;
        } else {
            match facts::remove_unchanged(&homes.context.js, &key, FactName::Address(address), revision).await {
                Ok(_) => tracing::info!(%address, "address is another's or gone, and was removed"),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Everybody whose the address was said to be, but its owner.
fn losers(entries: &[Ownership], newest: &Ownership) -> Vec<RecipientId> {
    let mut names: Vec<_> = entries
        .iter()
        .flat_map(|entry| entry.is.iter().chain(&entry.was))
        .collect();
    names.sort();
    names.dedup();
    names.retain(|name| newest.is.as_ref() != Some(name));
    names.into_iter().cloned().collect()
}
