//! The doors: how a request comes in and how its answer goes out. A door knows the rooms behind it; no room knows a
//! door.

pub(crate) mod http;
mod problem;
mod send;
