//! Files that only this process's user may read: they hold who receives what.

use std::{
    fs::{OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Reading and writing by the owner alone.
const OWNER_ONLY: u32 = 0o600;

/// Creates an empty file if there is none, and takes the permissions of all but its owner away.
///
/// # Errors
/// When the file cannot be created, or belongs to another user.
pub(crate) fn tighten(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).mode(OWNER_ONLY).open(path)?;
    file.set_permissions(Permissions::from_mode(OWNER_ONLY))
}
