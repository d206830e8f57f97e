//! Free ports that stay ours: a server that is killed and started again finds its port free.

use std::fs::File;
use std::net::TcpListener;

use anyhow::{Context as _, Result, bail};

/// Below the range from which systems give ports to outgoing connections, so that none of those can take one.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port that no other process which asks here gets, for as long as this lives.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    _lock: File,
}

impl PortLease {
    /// Takes a free port.
    ///
    /// # Errors
    /// When there is none.
    pub fn take() -> Result<Self> {
        // A folder for each user: what root made, others could not lock.
        let folder = std::env::temp_dir().join(format!("arbees-ports-{}", nix::unistd::Uid::effective()));
        std::fs::create_dir_all(&folder).context("creating the folder of port locks")?;
        // Processes begin at different places, so that they seldom try the same one.
        let start = usize::try_from(std::process::id())? * 37 % RANGE.len();
        for port in RANGE.skip(start).chain(RANGE.take(start)) {
            let Ok(lock) = File::create(folder.join(port.to_string())) else { continue };
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Ok(Self { port, _lock: lock });
            }
        }
        bail!("no free port from {} to {}", RANGE.start, RANGE.end)
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}
