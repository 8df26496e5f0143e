//! HTTP/2 to a provider: pools of connections, and one request with its answer.
//!
//! It uses `h2` without an HTTP client in between: a push costs a third less, unsent requests are distinguishable from
//! sent ones, and a connection can be opened to a given address.

mod connection;
mod dial;
mod exchange;
mod network;
mod pool;

pub(in crate::providers) use self::{
    connection::read,
    dial::Host,
    exchange::{Exchanged, exchange},
    network::Network,
    pool::Pool,
};
