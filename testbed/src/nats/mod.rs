//! Real nats-servers: finding the program, one server, and a mesh of a hub with regions.
//!
//! The servers run with the very files under `deploy/nats/`. Only the values those files ask the environment for are
//! made up here, so what is deployed is what the tests ran.

mod keys;
mod mesh;
mod obtain;
mod server;
#[cfg(test)]
mod tests;

pub use keys::{Key, Keys};
pub use mesh::Mesh;
pub use obtain::{VERSION, from_env, obtain};
pub use server::{Role, Server, Settings, SyncInterval};
