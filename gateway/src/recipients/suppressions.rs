//! The suppression lists: which mailboxes and numbers an app must not send to. The API, the callbacks of providers and links to
//! unsubscribe change them here; workers follow.

use std::collections::HashMap;

use jiff::Timestamp;
use shared::{
    address::Address,
    channel::Channel,
    id::{AddressId, AppId, Category},
    nats::{direct::NoAnswer, publish::NotStored, suppressions},
    suppression::{Suppression, SuppressionId, SuppressionReason},
};

use crate::context::Context;

/// What is to be added to a list.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Email or SMS, whichever the address belongs to.
    pub(crate) channel: Channel,
    /// The address, by its keyed id: [`shared::address::Address::new`] derives it, and jobs and receipts carry it.
    pub(crate) address: AddressId,
    pub(crate) reason: SuppressionReason,
    /// The word of the provider that reported it, or the id of the API key that added it. Never part of an address.
    pub(crate) source: String,
    /// Only for this category; for all if absent.
    pub(crate) category: Option<Category>,
    /// When it ends; never if absent.
    pub(crate) expires_at: Option<Timestamp>,
}

/// Forbids `app` to send to an address, from now on, and returns what is on the list then. What is on it is never shortened and
/// its reason never made lighter ([`Suppression::and`]). Workers of this region send nothing to the address that they pull after
/// this has returned; those of other regions as soon as the entry has arrived. Safe to repeat.
///
/// # Errors
/// When the region's directory did not confirm it; then repeat.
pub(crate) async fn suppress(
    context: &Context,
    app: &AppId,
    wanted: Wanted,
) -> Result<(SuppressionId, Suppression), NotStored> {
    let Wanted {
        channel,
        address,
        reason,
        source,
        category,
        expires_at,
    } = wanted;
    let id = id_of(context, address, category.as_ref());
    let wanted = Suppression {
        channel,
        reason,
        source,
        category,
        created_at: context.clock.now(),
        expires_at,
    };
    let Context { js, border, here, .. } = context;
    let suppression = suppressions::add(js, border, here, app, id, wanted).await?;
    Ok((id, suppression))
}

/// The entries for all categories that forbid `app` to send to some of these addresses.
///
/// # Errors
/// When the region's directory does not answer.
pub(crate) async fn of_addresses(
    context: &Context,
    app: &AppId,
    addresses: impl Iterator<Item = &Address>,
) -> Result<HashMap<SuppressionId, Suppression>, NoAnswer> {
    let listed = addresses.filter(|address| Suppression::applies_to(address.target.channel()));
    let ids: Vec<_> = listed.map(|address| id_of(context, address.id, None)).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let Context { js, border, .. } = context;
    suppressions::in_force(js, border, app, &ids, context.clock.now()).await
}

/// The id of the entry about an address, for one category or for all.
pub(crate) fn id_of(context: &Context, address: AddressId, category: Option<&Category>) -> SuppressionId {
    SuppressionId::of(&context.config.id_key(), address, category)
}

/// Takes an entry off the list of `app`. Returns `false` if there is none in force. Safe to repeat.
///
/// # Errors
/// When the region's directory did not confirm it; then repeat.
pub(crate) async fn lift(context: &Context, app: &AppId, id: SuppressionId) -> Result<bool, NotStored> {
    let Context { js, border, here, .. } = context;
    suppressions::lift(js, border, here, app, id, context.clock.now()).await
}

/// At most `limit` entries of the list of `app` that `admits` lets through, from a place in this region's directory on.
///
/// # Errors
/// When the region's directory does not answer.
pub(crate) async fn list(
    context: &Context,
    app: &AppId,
    from: u64,
    limit: usize,
    admits: impl Fn(&Suppression) -> bool,
) -> Result<suppressions::Page, NoAnswer> {
    let Context { js, border, .. } = context;
    suppressions::page(js, border, app, from, limit, context.clock.now(), admits).await
}
