//! The suppression lists: which mailboxes and numbers an app must not send to. The API, the callbacks of providers and links to
//! unsubscribe change them here; workers follow.

use jiff::Timestamp;
use shared::{
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
    let id = SuppressionId::of(&context.config.id_key(), address, category.as_ref());
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
