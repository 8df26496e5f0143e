//! A small file system of its own under a folder, to be filled and freed. Needs root.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use tokio::process::Command;

/// A file system over a folder; taken away when it is dropped.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    /// Its blocks, if they are in a file.
    image: Option<PathBuf>,
}

impl Disk {
    /// Mounts a file system of this size over `folder`, with a copy of its files.
    ///
    /// # Errors
    /// When this process may not mount.
    pub(super) async fn over(folder: &Path, megabytes: u64) -> anyhow::Result<Self> {
        let size = format!("size={megabytes}m");
        Self::mounted(folder, None, &["-t", "tmpfs", "-o", &size, "tmpfs"]).await
    }

    /// Like [`Self::over`], but with the blocks in a file. They hold what was flushed, and what the system wrote back.
    ///
    /// # Errors
    /// When this process may not mount.
    pub(super) async fn of_blocks(folder: &Path, megabytes: u64) -> anyhow::Result<Self> {
        let image = folder.with_extension("image");
        fs::File::create(&image)?.set_len(megabytes << 20)?;
        run("mkfs.ext4", &["-q", path(&image)?]).await?;
        Self::mounted(folder, Some(image.clone()), &["-o", "loop", path(&image)?]).await
    }

    async fn mounted(folder: &Path, image: Option<PathBuf>, what: &[&str]) -> anyhow::Result<Self> {
        let aside = folder.with_extension("aside");
        run("cp", &["-a", path(folder)?, path(&aside)?]).await?;
        run("mount", &[what, &[path(folder)?]].concat()).await?;
        let disk = Self {
            folder: folder.to_owned(),
            image,
        };
        run("cp", &["-a", &format!("{}/.", path(&aside)?), path(folder)?]).await?;
        // What was there before is no part of what a power loss takes.
        run("sync", &["--file-system", path(folder)?]).await?;
        Ok(disk)
    }

    /// Keeps the blocks as they are now.
    ///
    /// # Errors
    /// When they are not in a file.
    pub(super) async fn remember(&self) -> anyhow::Result<()> {
        let image = self.image.as_deref().context("a file of blocks")?;
        run("cp", &["--sparse=always", path(image)?, path(&kept(image))?]).await
    }

    /// Has the blocks that were kept and no others, as after a power loss. Nobody may use its files.
    ///
    /// # Errors
    /// When none were kept.
    pub(super) async fn go_back(&self) -> anyhow::Result<()> {
        let image = self.image.as_deref().context("a file of blocks")?;
        run("umount", &[path(&self.folder)?]).await?;
        fs::rename(kept(image), image)?;
        run("mount", &["-o", "loop", path(image)?, path(&self.folder)?]).await
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

fn kept(image: &Path) -> PathBuf {
    image.with_extension("kept")
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
