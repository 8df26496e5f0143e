//! Damage to the files of a worker that does not run, and copies of them.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::Context;
use rand::{Rng, rngs::StdRng};
use serde::Deserialize;

const PAGE_BYTES: usize = 4096;

/// Which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DataFile {
    Cache,
    Ledger,
}

impl DataFile {
    fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache.redb",
            Self::Ledger => "ledger.redb",
        }
    }
}

/// What is done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DamageKind {
    /// It ends somewhere in its second half.
    Truncate,
    /// A quarter of its pages hold only zeros, the first excepted.
    Zero,
    /// One bit of each tenth page or so is the other one.
    Flip,
    /// It begins with something else.
    Header,
    Delete,
}

/// Damages a file in the data folder of a worker.
///
/// # Errors
/// When there is no such file.
pub(super) fn damage(data: &Path, file: DataFile, how: DamageKind, random: &mut StdRng) -> anyhow::Result<()> {
    let path = data.join(file.name());
    let size = fs::metadata(&path)
        .with_context(|| format!("damaging {}", path.display()))?
        .len();
    let open = || fs::File::options().read(true).write(true).open(&path);
    let page = PAGE_BYTES as u64;
    let pages = (size / page).max(2);
    match how {
        DamageKind::Delete => fs::remove_file(&path)?,
        DamageKind::Truncate => open()?.set_len(random.random_range(size / 2..size))?,
        DamageKind::Header => open()?.write_all(&[0x5a; 64])?,
        DamageKind::Zero => {
            let mut file = open()?;
            for _ in 0..(pages / 4).max(1) {
                file.seek(SeekFrom::Start(page * random.random_range(1..pages)))?;
                file.write_all(&[0; PAGE_BYTES])?;
            }
        }
        DamageKind::Flip => {
            let mut file = open()?;
            for _ in 0..(pages / 10).max(1) {
                let at = random.random_range(page..size);
                let mut byte = [0];
                file.seek(SeekFrom::Start(at))?;
                file.read_exact(&mut byte)?;
                byte[0] ^= 1 << random.random_range(0..8);
                file.seek(SeekFrom::Start(at))?;
                file.write_all(&byte)?;
            }
        }
    }
    Ok(())
}

/// Makes `folder` hold the same files as `original`, and nothing else.
///
/// # Errors
/// When a file cannot be removed, read or written.
pub(super) fn replace(folder: &Path, original: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(original).with_context(|| format!("copying {}", original.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), folder.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            replace(&to, &from)?;
        } else {
            fs::copy(from, to)?;
        }
    }
    Ok(())
}
