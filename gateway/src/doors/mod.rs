//! The doors: how a request comes in and its answer goes out. They know the rooms behind them, which know no door.

pub(crate) mod http;
