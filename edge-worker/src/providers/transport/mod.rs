//! How requests reach a provider: endpoints and their choice, connections over HTTP/2, other HTTPS requests, TLS. Knows
//! no provider.

pub(super) mod endpoints;
pub(super) mod http2;
pub(super) mod retry_after;
pub(super) mod tls;
