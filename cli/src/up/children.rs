//! Which programs make a stack, and what each is told.

use std::path::Path;

use anyhow::{Context as _, Result};
use arbees_testkit::feed::Source;
use arbees_testkit::programs::{Programs, Settings};

use super::ground::Ground;
use super::screen::Screen;
use crate::Up;
use crate::addresses::{self, Addresses};

/// All programs of this stack.
#[derive(Debug)]
pub struct Children {
    pub programs: Programs,
    feed_url: String,
    /// What operators of this stack must know; a private one has its own.
    operator_token: Option<String>,
}

impl Children {
    /// None yet; their logs go below `run`. The programs lie beside this one.
    pub fn new(args: &Up, run: &Path) -> Result<Self> {
        let here = std::env::current_exe().context("finding this program")?;
        let folder = here.parent().context("this program lies nowhere")?;
        let programs = Programs::new(folder, &run.join("logs"), args.external);
        let own = || (!args.external).then(|| uuid::Uuid::new_v4().simple().to_string());
        let operator_token = addresses::variable("OPERATOR_TOKEN").filter(|_| args.external).or_else(own);
        Ok(Self { programs, feed_url: String::new(), operator_token })
    }

    /// Starts feed, projector, orchestrator and shards.
    pub async fn start(&mut self, args: &Up, ground: &Ground, screen: &Screen) -> Result<()> {
        self.start_feed(args, screen).await?;
        let mut settings: Settings =
            [("NATS_URL", &ground.nats_url), ("REDIS_URL", &ground.redis_url), ("DATABASE_URL", &ground.database_url)]
                .map(|(name, value)| (name.to_owned(), value.clone()))
                .into();
        if args.feed != Source::Live {
            let ours = [
                ("ESPN_BASE_URL", self.feed_url.as_str()),
                ("DISCOVERY_INTERVAL_SECS", "1"),
                ("POLL_INTERVAL", "0.2"),
                // On the first day the leader waits this long for shards that beat on Redis only: here there are none.
                ("HEARTBEAT_INTERVAL_SECS", "1"),
            ];
            settings.extend(ours.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        // A private stack writes nothing outside its own folder.
        if !args.external
            && let Some(run) = self.programs.logs().parent()
        {
            let file = run.join("alerts.log").to_string_lossy().into_owned();
            settings.insert("ALERT_LOG_PATH".to_owned(), file);
        }
        settings.extend(self.operator_token.clone().map(|token| ("OPERATOR_TOKEN".to_owned(), token)));
        for (name, file) in [("projector", "arbees-projector"), ("orchestrator", "arbees-orchestrator")] {
            screen.started(name, &self.programs.start(name, file, &settings).await?);
        }
        for number in 1..=args.shards {
            let name = format!("shard_{number:02}");
            settings.insert("SHARD_ID".to_owned(), name.clone());
            screen.started(&name, &self.programs.start(&name, "arbees-shard", &settings).await?);
        }
        Ok(())
    }

    async fn start_feed(&mut self, args: &Up, screen: &Screen) -> Result<()> {
        let (source, shown) = match &args.feed {
            Source::Live => {
                screen.started("feed", "ESPN itself");
                return Ok(());
            }
            Source::Sim => ("sim".to_owned(), "made-up games".to_owned()),
            Source::Folder(path) => (format!("dir:{}", path.display()), path.display().to_string()),
        };
        let speed = args.speed.to_string();
        self.feed_url = self.programs.start_feed(&["--feed", &source, "--speed", &speed]).await?;
        screen.started("feed", &format!("{}  {shown}, {speed} times as fast", self.feed_url));
        Ok(())
    }

    /// Where everything is.
    pub fn addresses(&self, ground: &Ground) -> Addresses {
        let services = || self.programs.all().filter(|(name, ..)| *name != "feed");
        Addresses {
            nats_url: ground.nats_url.clone(),
            redis_url: ground.redis_url.clone(),
            database_url: ground.database_url.clone(),
            stream_prefix: ground.stream_prefix.clone(),
            nats_creds: ground.nats_creds.clone(),
            operator_token: self.operator_token.clone(),
            feed_url: self.feed_url.clone(),
            health: services().map(|(name, port, _)| (name.to_owned(), format!("http://127.0.0.1:{port}"))).collect(),
            processes: self
                .programs
                .all()
                .map(|(name, _, id)| (name.to_owned(), id))
                .chain(ground.processes.clone())
                .collect(),
            logs: self.programs.logs().to_owned(),
            up: std::process::id(),
        }
    }
}
