//! `peal roles` and `peal nkey`: users and permissions for the configuration of a nats-server.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use gateway::provision;
use shared::{
    id::{AccountKey, AppId, Region},
    nats::{
        accounts::{self, Names},
        nkey::Nkey,
        roles::Parties,
    },
};

use super::{Answer, Failure, operator};

#[derive(Debug, Args)]
pub(super) struct RolesArgs {
    #[command(flatten)]
    parties: PartiesArgs,
    /// Print them for a region's servers with an operator: as JWTs, signed with the keys in this folder. Keys that are
    /// missing there are made, and the `.creds` files of users written.
    #[arg(long, value_name = "FOLDER", requires = "region")]
    jwt: Option<PathBuf>,
}

/// Which servers, in which mesh.
#[derive(Debug, Args)]
pub(super) struct PartiesArgs {
    /// The file of regions and apps that `peal-gateway provision` reads.
    file: PathBuf,
    /// The servers of this region. Default: those of the hub.
    #[arg(long, value_name = "REGION")]
    region: Option<Region>,
    /// Add what programs of the former version need, which run beside this one during an upgrade.
    #[arg(long)]
    beside_former: bool,
}

/// The parties of a mesh, and the region whose servers are meant, with its helpers.
pub(super) struct Servers {
    pub(super) parties: Parties,
    /// The public keys of apps' accounts that the file has.
    pub(super) accounts: BTreeMap<AppId, AccountKey>,
    pub(super) region: Option<(Region, Vec<Region>)>,
}

impl PartiesArgs {
    pub(super) fn read(&self) -> Result<Servers, Failure> {
        let (sites, apps) = provision::parties(&self.file).map_err(|error| Failure::Arguments(error.to_string()))?;
        let region = match &self.region {
            None => None,
            Some(region) => {
                let unknown = || Failure::Arguments(format!("--region: the file has no region {region}"));
                let site = sites.get(region).ok_or_else(unknown)?;
                Some((region.clone(), site.helpers.clone()))
            }
        };
        Ok(Servers {
            parties: Parties {
                regions: sites.keys().cloned().collect(),
                apps: apps.keys().cloned().collect(),
                beside_former: self.beside_former,
            },
            accounts: apps.into_iter().filter_map(|(app, key)| Some((app, key?))).collect(),
            region,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct NkeyArgs {
    /// The file to write the seed (the secret half) to; it must not exist. The public half is printed.
    file: PathBuf,
}

pub(super) fn roles(args: &RolesArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let servers = args.parties.read()?;
    if let Some(folder) = &args.jwt {
        out.write_all(operator::conf(folder, &servers)?.as_bytes())?;
        return Ok(Answer::Yes);
    }
    let parties = &servers.parties;
    let accounts = match &servers.region {
        None => accounts::of_hub(parties),
        Some((region, helpers)) => accounts::of_region(region, helpers, parties, &Names::plain(&parties.apps)),
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

pub(super) fn write_secret(file: &Path, secret: &str) -> Result<(), Failure> {
    let not_written = |error| Failure::Arguments(format!("{}: {error}", file.display()));
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    // Without a line feed: some clients take the whole file as the seed.
    write!(opened.map_err(not_written)?, "{secret}").map_err(not_written)
}
