//! Sees to it that an address serves one recipient: the one who registered it last, wherever that was, and nobody once
//! its provider called it gone. What the directory says of an address takes it from everybody else who lives here.

use std::{sync::Arc, time::Duration};

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

use crate::context::Parts;

/// Addresses that are looked at together.
const TOGETHER: usize = 32;

/// When news is looked at again: an address that was registered where its recipient does not live comes on another stream
/// than the word that it is someone else's, and perhaps later.
const AGAIN: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(15), Duration::from_mins(2)];

/// How long what could not be read or written is left alone.
const REST: Duration = Duration::from_secs(2);

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
pub(crate) async fn run(parts: Arc<Parts>) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let news = |app, address, is_news: bool| {
        let looks = if is_news { AGAIN.len() } else { 0 };
        tell(&sender, Contested { app, address, looks });
    };
    let following = parts.directory.clone().follow(parts.js.clone(), news);
    let settling = stream::poll_fn(|context| receiver.poll_recv(context))
        .for_each_concurrent(TOGETHER, |contested| look(parts.clone(), contested, sender.clone()));
    tokio::join!(following, settling);
}

/// Settles it now, and again later if that is due.
async fn look(parts: Arc<Parts>, mut contested: Contested, sender: mpsc::UnboundedSender<Contested>) {
    let rest = match settle(&parts, &contested.app, contested.address).await {
        Ok(()) if contested.looks == 0 => return,
        Ok(()) => {
            contested.looks -= 1;
            AGAIN[AGAIN.len() - 1 - contested.looks]
        }
        Err(error) => {
            tracing::warn!(address = %contested.address, %error, "whose an address is could not be settled; tried again");
            REST
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
pub(crate) async fn settle_now(parts: &Parts, app: &AppId, address: AddressId) {
    if let Err(error) = settle(parts, app, address).await {
        tracing::debug!(%address, %error, "whose an address is will be settled later");
    }
}

/// Takes an address from everybody who lives here and is not the last who registered it. Whoever registered it again after
/// the newest word is that.
async fn settle(parts: &Parts, app: &AppId, address: AddressId) -> Result<(), Unsettled> {
    let said = ownerships(&parts.js, app, address).await.map_err(NotRead::from)?;
    let Some(newest) = said.iter().max_by_key(|said| (said.at, &said.is)) else {
        return Ok(());
    };
    for recipient in losers(&said, newest) {
        let key = RecipientKey {
            app: app.clone(),
            recipient,
        };
        let Some((kept, revision)) = facts::address(&parts.js, &key, address).await? else {
            continue;
        };
        if kept.registered_at > newest.at {
            parts
                .put_owner(app, address, Some(key.recipient), kept.registered_at)
                .await?;
        } else {
            match facts::remove_unchanged(&parts.js, &key, FactName::Address(address), revision).await {
                Ok(_) => tracing::info!(%address, "address is another's or gone, and was removed"),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Everybody whose the address was said to be, but its owner.
fn losers(said: &[Ownership], newest: &Ownership) -> Vec<RecipientId> {
    let mut names: Vec<_> = said.iter().flat_map(|said| said.is.iter().chain(&said.was)).collect();
    names.sort();
    names.dedup();
    names.retain(|name| newest.is.as_ref() != Some(name));
    names.into_iter().cloned().collect()
}
