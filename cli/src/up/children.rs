//! The programs of the stack, each its own process with its own log file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use arbees_testkit::feed::Source;
use arbees_testkit::process::Process;
use arbees_testkit::servers::PortLease;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::ground::Ground;
use super::screen::Screen;
use crate::Up;
use crate::addresses::Addresses;

/// How long a program may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a program may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(12);

/// Variables of the shell that could lead a private stack to somebody's real services.
const NOT_INHERITED: [&str; 12] = [
    "NATS_CREDS",
    "NATS_MONITOR_URL",
    "STREAM_PREFIX",
    "STREAM_REPLICAS",
    "SLACK_WEBHOOK_URL",
    "CUSTOM_WEBHOOK_URL",
    "PAGERDUTY_ROUTING_KEY",
    "TWILIO_ACCOUNT_SID",
    "TWILIO_AUTH_TOKEN",
    "ESPN_BASE_URL",
    "SHARD_ID",
    "INSTANCE_ID",
];

/// All programs, in the order in which they were started.
#[derive(Debug)]
pub struct Children {
    folder: PathBuf,
    feed_url: String,
    running: Vec<Child>,
}

#[derive(Debug)]
struct Child {
    process: Process,
    port: PortLease,
    is_noted_dead: bool,
}

impl Children {
    /// None yet; their logs go below `run`.
    pub fn new(run: &Path) -> Self {
        Self { folder: run.join("logs"), feed_url: String::new(), running: Vec::new() }
    }

    /// Starts feed, projector, orchestrator and shards.
    pub async fn start(&mut self, args: &Up, ground: &Ground, screen: &Screen) -> Result<()> {
        self.start_feed(args, screen).await?;
        let mut settings: Vec<(&str, String)> = vec![
            ("NATS_URL", ground.nats_url.clone()),
            ("REDIS_URL", ground.redis_url.clone()),
            ("DATABASE_URL", ground.database_url.clone()),
        ];
        if args.feed != Source::Live {
            settings.push(("ESPN_BASE_URL", self.feed_url.clone()));
            settings.push(("DISCOVERY_INTERVAL_SECS", "1".to_owned()));
            settings.push(("POLL_INTERVAL", "0.2".to_owned()));
        }
        let private = ground.is_private();
        self.start_service("projector", "arbees-projector", &settings, private, screen).await?;
        self.start_service("orchestrator", "arbees-orchestrator", &settings, private, screen).await?;
        for number in 1..=args.shards {
            let name = format!("shard_{number:02}");
            let mut own = settings.clone();
            own.push(("SHARD_ID", name.clone()));
            self.start_service(&name, "arbees-shard", &own, private, screen).await?;
        }
        Ok(())
    }

    async fn start_feed(&mut self, args: &Up, screen: &Screen) -> Result<()> {
        let source = match &args.feed {
            Source::Live => {
                screen.started("feed", &super::feed_name(&args.feed, args.speed));
                return Ok(());
            }
            Source::Sim => "sim".to_owned(),
            Source::Folder(path) => format!("dir:{}", path.display()),
        };
        let port = PortLease::take()?;
        let mut command = Command::new(program("arbees-feed")?);
        command.args(["--feed", &source, "--speed", &args.speed.to_string()]);
        command.args(["--listen", &format!("127.0.0.1:{}", port.port())]).process_group(0);
        self.feed_url = format!("http://127.0.0.1:{}", port.port());
        self.add("feed", command, port)?;
        self.await_answer("/baseball/mlb/scoreboard").await?;
        screen.started("feed", &format!("{}  {}", self.feed_url, super::feed_name(&args.feed, args.speed)));
        Ok(())
    }

    async fn start_service(
        &mut self,
        name: &str,
        file: &str,
        settings: &[(&str, String)],
        is_private: bool,
        screen: &Screen,
    ) -> Result<()> {
        let port = PortLease::take()?;
        let mut command = Command::new(program(file)?);
        if is_private {
            for name in NOT_INHERITED {
                command.env_remove(name);
            }
        }
        command.envs(settings.iter().map(|(k, v)| (*k, v.as_str())));
        command.env("HTTP_LISTEN", format!("127.0.0.1:{}", port.port())).process_group(0);
        let url = format!("http://127.0.0.1:{}/readyz", port.port());
        self.add(name, command, port)?;
        self.await_answer("/readyz").await?;
        screen.started(name, &url);
        Ok(())
    }

    fn add(&mut self, name: &str, mut command: Command, port: PortLease) -> Result<()> {
        let log = self.folder.join(format!("{name}.log"));
        let process = Process::spawn(name, &mut command, &log)?;
        self.running.push(Child { process, port, is_noted_dead: false });
        Ok(())
    }

    /// Waits until the program started last answers `path` with 200.
    async fn await_answer(&mut self, path: &str) -> Result<()> {
        let Some(child) = self.running.last_mut() else { return Ok(()) };
        let port = child.port.port();
        let begun = std::time::Instant::now();
        loop {
            let seen = match get(port, path).await {
                Ok(()) => return Ok(()),
                Err(seen) => seen,
            };
            if let Some(status) = child.process.ended() {
                bail!("{} ended ({status}):\n{}", child.process.name(), child.process.last_words());
            }
            if begun.elapsed() > READY_LIMIT {
                let name = child.process.name();
                bail!("{name} is not ready after {READY_LIMIT:?} ({seen}); see {}", child.process.log().display());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Where everything is.
    pub fn addresses(&self, ground: &Ground) -> Addresses {
        let named = |c: &Child| c.process.name().to_owned();
        let health = |c: &Child| (named(c), format!("http://127.0.0.1:{}", c.port.port()));
        let health: BTreeMap<_, _> = self.running.iter().filter(|c| c.process.name() != "feed").map(health).collect();
        Addresses {
            nats_url: ground.nats_url.clone(),
            redis_url: ground.redis_url.clone(),
            database_url: ground.database_url.clone(),
            feed_url: self.feed_url.clone(),
            health,
            processes: self.running.iter().filter_map(|c| Some((named(c), c.process.id()?))).collect(),
            logs: self.folder.clone(),
            up: std::process::id(),
        }
    }

    /// Programs that have ended since the last time, each in a line.
    pub fn new_dead(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for child in self.running.iter_mut().filter(|c| !c.is_noted_dead) {
            if let Some(status) = child.process.ended() {
                child.is_noted_dead = true;
                lines.push(format!(
                    "  {} ended ({status}); see {}",
                    child.process.name(),
                    child.process.log().display()
                ));
            }
        }
        lines
    }

    /// Stops all, the last started first.
    pub async fn stop(&mut self, screen: &Screen) -> Result<()> {
        let mut failures = Vec::new();
        while let Some(mut child) = self.running.pop() {
            if child.process.ended().is_some() {
                continue;
            }
            match child.process.stop(Signal::SIGTERM, STOP_LIMIT).await {
                Ok(_) => screen.line(&format!("  {} stopped", child.process.name())),
                Err(error) => {
                    screen.line(&format!("  {error:#}"));
                    failures.push(child.process.name().to_owned());
                }
            }
        }
        if failures.is_empty() { Ok(()) } else { bail!("had to be killed: {}", failures.join(", ")) }
    }
}

/// The program `file` beside this one.
fn program(file: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("finding this program")?;
    let path = here.with_file_name(file);
    if !path.is_file() {
        bail!("{} is not there: build it with `make build`", path.display());
    }
    Ok(path)
}

/// A bare GET: whether it answers 200.
async fn get(port: u16, path: &str) -> Result<(), String> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&head).into_owned())
    };
    match tokio::time::timeout(Duration::from_secs(2), ask).await {
        Ok(Ok(head)) if head.ends_with("200") => Ok(()),
        Ok(Ok(head)) => Err(head),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}
