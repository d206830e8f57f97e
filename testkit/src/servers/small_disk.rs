//! A disk of a few megabytes that can be filled: a file system in memory, mounted where only the servers started on it see it.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use tokio::process::{Child, Command};

/// A folder that lies on a small disk for the servers that are started on it. It is gone when this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
    megabytes: u32,
    /// Does nothing but keep the disk.
    keeper: Child,
}

/// How often it is looked for, every 10 ms.
const MOUNTED_WITHIN: u32 = 500;

/// The kernel says that there is no room.
fn is_full(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::StorageFull
}

impl SmallDisk {
    /// A disk of so many megabytes at `folder`; none where the system lets nobody mount one.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub async fn new(folder: &Path, megabytes: u32) -> Result<Option<Self>> {
        std::fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        let script = "mount -t tmpfs -o mode=0777,size=$0m arbees-small-disk \"$1\" && touch \"$1/.mounted\" && exec sleep 100000";
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--", "sh", "-c", script]);
        command.arg(megabytes.to_string()).arg(&folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let Ok(keeper) = command.spawn() else { return Ok(None) };
        let mut disk = Self { folder, megabytes, keeper };
        for _ in 0..MOUNTED_WITHIN {
            if disk.inside().is_ok_and(|path| path.join(".mounted").exists()) {
                return Ok(Some(disk));
            }
            if disk.keeper.try_wait()?.is_some() {
                return Ok(None);
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        bail!("the small disk at {} cannot be seen", disk.folder.display())
    }

    /// Its folder, as servers on it see it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a server's program and its arguments are put behind.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        let keeper = self.keeper.id().unwrap_or(0).to_string();
        let words = ["nsenter", "--user", "--mount", "--preserve-credentials", "--target", &keeper, "--"];
        words.map(str::to_owned).into()
    }

    /// The folder as it is seen from here, through the process that keeps it.
    fn inside(&self) -> Result<PathBuf> {
        let keeper = self.keeper.id().context("nobody keeps the disk any more")?;
        let inside = self.folder.strip_prefix("/").unwrap_or(&self.folder);
        Ok(PathBuf::from(format!("/proc/{keeper}/root")).join(inside))
    }

    /// Fills it to the last byte.
    ///
    /// # Errors
    /// When it cannot be reached, or never gets full.
    pub fn fill(&self) -> Result<()> {
        let path = self.inside()?.join("ballast");
        let mut file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        for size in [1 << 20, 4_096] {
            let chunk = vec![0; size];
            for _ in 0..=u64::from(self.megabytes) * 1_048_576 / size as u64 {
                match file.write_all(&chunk) {
                    Ok(()) => {}
                    Err(error) if is_full(&error) => break,
                    Err(error) => return Err(error).context("filling the small disk"),
                }
            }
        }
        match file.write_all(&[0; 4_096]) {
            Err(error) if is_full(&error) => Ok(()),
            _ => bail!("the small disk does not get full"),
        }
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.inside()?.join("ballast"))?)
    }
}

/// A command of these words and more.
pub(super) fn command_of(words: &[String]) -> Command {
    let mut command = Command::new(words.first().map_or("", String::as_str));
    command.args(words.iter().skip(1));
    command
}
