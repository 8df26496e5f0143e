//! Runs real nats-servers: finds the program, starts one server, or a mesh of a hub with regions.
//!
//! The servers use the configuration files under `deploy/nats/`, so that tests run the configuration that is deployed.
//! Only the values that those files take from the environment are set here.

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
