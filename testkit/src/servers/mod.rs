//! The embedded stack: real NATS, Valkey and Postgres, started privately on free loopback ports.

mod binaries;
mod cluster;
mod nats;
mod port;
mod postgres;
mod server;
mod small_disk;
mod valkey;

use std::path::{Path, PathBuf};

use anyhow::Result;

pub use binaries::Binaries;
pub use cluster::Cluster;
pub use nats::Nats;
pub use port::PortLease;
pub use postgres::Postgres;
pub use server::Server;
pub use small_disk::SmallDisk;
pub use valkey::Valkey;

/// A folder of its own under the system's temporary folder; removed when dropped, unless the test failed.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new empty folder.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn new(name: &str) -> Result<Self> {
        let unique = format!("arbees-{name}-{}-{}", std::process::id(), chrono::Utc::now().timestamp_micros());
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // What can't be removed now, the system's own cleaning will.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
