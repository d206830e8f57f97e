//! Where a running stack is: written by `up`, found by the other commands with no argument.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use arbees_core::config::LogConfig;
use arbees_core::log::{self, Log};
use arbees_proto::subject::Names;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::Look;

/// Where `up` keeps its things when it is not told.
pub const DEFAULT_FOLDER: &str = ".arbees";
const FILE: &str = "addresses.json";

/// The addresses of one stack.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Addresses {
    pub nats_url: String,
    pub redis_url: String,
    pub database_url: String,
    /// `STREAM_PREFIX` of the stack; a private one has none.
    pub stream_prefix: String,
    /// `NATS_CREDS` of the stack; a private one has none.
    pub nats_creds: Option<String>,
    /// `OPERATOR_TOKEN` of the stack; a private one makes its own.
    #[serde(default)]
    pub operator_token: Option<String>,
    /// Base URL of the feed; empty with `--feed live`.
    pub feed_url: String,
    /// Base URL of each program's health.
    pub health: std::collections::BTreeMap<String, String>,
    /// Process id of each program.
    pub processes: std::collections::BTreeMap<String, u32>,
    /// Where the logs are.
    pub logs: PathBuf,
    /// Process id of `arbees up`.
    pub up: u32,
}

impl Addresses {
    /// Writes them into `folder`, whole or not at all.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let fresh = folder.join(format!("{FILE}.new"));
        // It holds the operators' token: it is for whoever brought the stack up.
        let mut open = std::fs::OpenOptions::new();
        let mut file = open.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&fresh, folder.join(FILE)).context("writing the addresses")
    }

    /// Those in `folder`, if there are any.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// Where the dashboard is.
    pub fn dashboard(&self) -> Option<String> {
        self.health.get("projector").map(|url| format!("{url}/"))
    }

    /// Takes them away.
    pub fn remove(folder: &Path) {
        // There is nothing to be done about a file that does not go, and its process id tells that it is stale.
        let _ = std::fs::remove_file(folder.join(FILE));
    }

    /// Whether the `up` that wrote them still runs.
    pub fn is_running(&self) -> bool {
        is_alive(self.up)
    }

    /// The programs that outlived an `up` which was killed, with their process ids.
    pub fn left_over(&self) -> Vec<String> {
        self.processes.iter().filter(|(_, id)| is_alive(**id)).map(|(name, id)| format!("{name} ({id})")).collect()
    }
}

fn is_alive(id: u32) -> bool {
    i32::try_from(id).is_ok_and(|pid| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok())
}

/// A variable that is set and not empty.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// The stack to look at: the one that is up here, or else the one that the environment names.
pub fn find(look: &Look) -> Result<Addresses> {
    let folder = look.data.clone().unwrap_or_else(|| DEFAULT_FOLDER.into());
    if let Some(addresses) = Addresses::read(&folder).filter(Addresses::is_running) {
        return Ok(addresses);
    }
    match (variable("DATABASE_URL"), variable("NATS_URL")) {
        (Some(database_url), Some(nats_url)) => Ok(Addresses {
            nats_url,
            database_url,
            stream_prefix: variable("STREAM_PREFIX").unwrap_or_default(),
            nats_creds: variable("NATS_CREDS"),
            ..Addresses::default()
        }),
        _ => bail!(
            "nothing is up in {}: start it with `arbees up`, name its folder with --data, or set DATABASE_URL and NATS_URL",
            folder.display()
        ),
    }
}

/// A person is waiting: a log that does not answer within this is said to be away.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The log of `addresses`.
pub async fn log(addresses: &Addresses) -> Result<Log> {
    let names = Names::new(&addresses.stream_prefix);
    let (url, creds) = (addresses.nats_url.clone(), addresses.nats_creds.clone());
    let config = LogConfig { url, creds, names, replicas: 1 };
    let never = CancellationToken::new();
    let connecting = tokio::time::timeout(ANSWER_WITHIN, log::connect("arbees", &config, &never));
    Ok(connecting.await.context("the log is away")??)
}
