//! Real nats-servers: finding the program, one server, and a mesh of a hub with regions.
//!
//! The servers run with the very files under `deploy/nats/`. Only the values those files ask the environment for are
//! made up here, so what is deployed is what the tests ran.

mod mesh;
mod obtain;
mod server;
#[cfg(test)]
mod tests;

pub use mesh::Mesh;
pub use obtain::{VERSION, from_env, obtain};
pub use server::{PASSWORD, Role, Server, Settings, SyncInterval, USER};
