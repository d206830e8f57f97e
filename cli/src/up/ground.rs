//! The servers under the stack: private ones, or those that the environment names.

use std::path::Path;

use anyhow::{Context as _, Result};
use arbees_testkit::servers::{Binaries, Nats, Postgres, Valkey};

use super::screen::Screen;
use crate::{Up, addresses};

/// Where the servers are, and those that are ours to stop.
#[derive(Debug)]
pub struct Ground {
    pub nats_url: String,
    pub redis_url: String,
    pub database_url: String,
    pub stream_prefix: String,
    pub nats_creds: Option<String>,
    /// Names and process ids of the servers that are ours.
    pub processes: Vec<(String, u32)>,
    ours: Option<(Nats, Valkey, Postgres)>,
}

impl Ground {
    /// Starts private servers with their data in `run`; with `--external` only reads where they are.
    pub async fn start(args: &Up, run: &Path, screen: &Screen) -> Result<Self> {
        if args.external {
            let variable = |name: &str| std::env::var(name).with_context(|| format!("--external needs {name}"));
            let ground = Self {
                nats_url: variable("NATS_URL")?,
                redis_url: variable("REDIS_URL")?,
                database_url: variable("DATABASE_URL")?,
                stream_prefix: addresses::variable("STREAM_PREFIX").unwrap_or_default(),
                nats_creds: addresses::variable("NATS_CREDS"),
                processes: Vec::new(),
                ours: None,
            };
            screen.line("using the servers that NATS_URL, REDIS_URL and DATABASE_URL name");
            return Ok(ground);
        }
        let binaries = Binaries::find(&|text| screen.line(text))?;
        let nats = Nats::start(&binaries, &run.join("nats")).await?;
        screen.started("nats", &nats.url());
        let valkey = Valkey::start(&binaries, &run.join("valkey")).await?;
        screen.started("redis", &valkey.url());
        let postgres = Postgres::start(&binaries, &run.join("postgres")).await?;
        screen.started("postgres", &postgres.url());
        Ok(Self {
            nats_url: nats.url(),
            redis_url: valkey.url(),
            database_url: postgres.url(),
            stream_prefix: String::new(),
            nats_creds: None,
            processes: [("nats", nats.id()), ("redis", valkey.id()), ("postgres", postgres.id())]
                .into_iter()
                .filter_map(|(name, id)| Some((name.to_owned(), id?)))
                .collect(),
            ours: Some((nats, valkey, postgres)),
        })
    }

    /// Stops what is ours: what others depend on goes last.
    pub async fn stop(self, screen: &Screen) -> Result<()> {
        let Some((mut nats, mut valkey, mut postgres)) = self.ours else { return Ok(()) };
        let stopped = [postgres.stop().await, valkey.stop().await, nats.stop().await];
        screen.line("  servers stopped");
        stopped.into_iter().collect()
    }
}
