//! `peal roles` and `peal nkey`: users and permissions for the configuration of a nats-server.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use gateway::provision;
use shared::{
    id::Region,
    nats::{
        accounts::{self, Names},
        nkey::Nkey,
        roles::Parties,
    },
};

use super::{Answer, Failure};

#[derive(Debug, Args)]
pub(super) struct RolesArgs {
    /// The file of regions and apps that `peal-gateway provision` reads.
    file: PathBuf,
    /// Print the roles for the servers of this region. Default: for those of the hub.
    #[arg(long, value_name = "REGION")]
    region: Option<Region>,
    /// Add what programs of the former version need, which run beside this one during an upgrade.
    #[arg(long)]
    beside_former: bool,
}

#[derive(Debug, Args)]
pub(super) struct NkeyArgs {
    /// The file to write the seed (the secret half) to; it must not exist. The public half is printed.
    file: PathBuf,
}

pub(super) fn roles(args: &RolesArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let (sites, apps) = provision::parties(&args.file).map_err(|error| Failure::Arguments(error.to_string()))?;
    let parties = Parties {
        regions: sites.keys().cloned().collect(),
        apps,
        beside_former: args.beside_former,
    };
    let accounts = match &args.region {
        None => accounts::of_hub(&parties),
        Some(region) => {
            let unknown = || Failure::Arguments(format!("--region: the file has no region {region}"));
            let site = sites.get(region).ok_or_else(unknown)?;
            accounts::of_region(region, &site.helpers, &parties, &Names::plain(&parties.apps))
        }
    };
    out.write_all(accounts::conf(&accounts, &parties.regions).as_bytes())?;
    Ok(Answer::Yes)
}

pub(super) fn nkey(args: &NkeyArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let key = Nkey::generate();
    write_secret(&args.file, key.seed.reveal())?;
    writeln!(out, "{}", key.public)?;
    Ok(Answer::Yes)
}

fn write_secret(file: &Path, secret: &str) -> Result<(), Failure> {
    let not_written = |error| Failure::Arguments(format!("{}: {error}", file.display()));
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    writeln!(opened.map_err(not_written)?, "{secret}").map_err(not_written)
}
