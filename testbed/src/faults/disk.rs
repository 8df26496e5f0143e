//! A small file system of its own under a folder, to be filled and freed. Needs root.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use tokio::process::Command;

/// A tmpfs over a folder; taken away when it is dropped.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Puts a file system of so many megabytes over `folder`, with the files that are there.
    ///
    /// # Errors
    /// When this process may not mount.
    pub(super) async fn over(folder: &Path, megabytes: u64) -> anyhow::Result<Self> {
        let aside = folder.with_extension("aside");
        run("cp", &["-a", path(folder)?, path(&aside)?]).await?;
        let size = format!("size={megabytes}m");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", path(folder)?]).await?;
        let disk = Self {
            folder: folder.to_owned(),
        };
        run("cp", &["-a", &format!("{}/.", path(&aside)?), path(folder)?]).await?;
        Ok(disk)
    }

    /// Takes all that is free.
    ///
    /// # Errors
    /// When nothing can be written at all.
    pub(super) fn fill(&self) -> anyhow::Result<()> {
        let mut file = fs::File::create(self.ballast())?;
        for size in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// When it was not taken.
    pub(super) fn free(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, because those who have files open there may still be ending.
        let unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.folder)
            .status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} may still be mounted", self.folder.display());
        }
    }
}

/// Whether this process is root's.
pub(super) fn may_mount() -> bool {
    let id = std::process::Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("path is not UTF-8")
}

async fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", complaint.trim());
    Ok(())
}
