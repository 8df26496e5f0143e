//! `peal reseal`: the secrets of the hub's configuration under the first of the mesh's keys.

use std::io::Write;

use clap::Args;
use gateway::provision;
use shared::nats::config;

use super::{Answer, Failure, mesh::MeshArgs};

#[derive(Debug, Args)]
pub(super) struct ResealArgs {
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(super) async fn run(args: ResealArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let connection = args.mesh.connect().await?;
    let mesh_key = connection.mesh_key()?;
    let hub = provision::hub(connection.client);
    let changed = config::reseal(&hub, &mesh_key).await;
    for entry in changed.map_err(|error| Failure::Streams(error.to_string()))? {
        writeln!(out, "{entry}")?;
    }
    Ok(Answer::Yes)
}
