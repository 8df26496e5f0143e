//! Apps, keys and regions, as operators and apps write them: by a file at the hub, or by the API of any region, whose
//! gateways relay to the admin gateways at the hub. Both ways end at the [`desk`].

pub(crate) mod change;
pub(crate) mod desk;
pub(crate) mod document;
pub(crate) mod relay;
mod serve;

pub(crate) use self::serve::serve;
