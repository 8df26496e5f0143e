//! `peal roles` and `peal nkey`: what a nats-server must know of who may do what.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use shared::{
    id::AppId,
    nats::{nkey::Nkey, roles},
};

use super::{Answer, Failure};
use crate::config::Settings;

#[derive(Debug, Args)]
pub(super) struct RolesArgs {
    /// The gateway's settings file; variables `PEAL_…` replace what it says.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Those of the hub instead of those of the settings' region.
    #[arg(long)]
    hub: bool,
    /// An app whose services publish by themselves; may be repeated.
    #[arg(long = "app", value_name = "APP")]
    apps: Vec<AppId>,
}

#[derive(Debug, Args)]
pub(super) struct NkeyArgs {
    /// Where the secret half goes; must not exist. The public half is printed.
    file: PathBuf,
}

pub(super) fn roles(args: &RolesArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let mesh = Settings::load(args.config.as_deref())?.mesh;
    let roles = if args.hub {
        roles::of_hub(&mesh.regions)
    } else {
        roles::of_region(&mesh.region, &args.apps)
    };
    out.write_all(roles::conf(&roles, &mesh.regions).as_bytes())?;
    Ok(Answer::Yes)
}

pub(super) fn nkey(args: &NkeyArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let key = Nkey::generate();
    write_secret(&args.file, key.seed.reveal())?;
    writeln!(out, "{}", key.public)?;
    Ok(Answer::Yes)
}

fn write_secret(file: &Path, secret: &str) -> Result<(), Failure> {
    let unwritten = |error| Failure::Arguments(format!("{}: {error}", file.display()));
    let options = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    writeln!(options.map_err(unwritten)?, "{secret}").map_err(unwritten)
}
