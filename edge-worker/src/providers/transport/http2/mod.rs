//! HTTP/2 to a provider: which connections there are, to where, and one request with its answer.
//!
//! Without an HTTP client between, a push costs a third less, a request that was never sent is distinguishable from one that was, and a
//! connection can be opened to a certain address.

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
