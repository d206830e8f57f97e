//! The programs of a stack, each its own process with its own log file and its own port for health.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::process::Process;
use crate::servers::PortLease;

/// How long a program may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a program may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(12);

/// Variables of the shell that could lead a private stack to somebody's real services.
const NOT_INHERITED: [&str; 20] = [
    "NATS_URL",
    "NATS_CREDS",
    "NATS_MONITOR_URL",
    "REDIS_URL",
    "DATABASE_URL",
    "STREAM_PREFIX",
    "STREAM_REPLICAS",
    "SLACK_WEBHOOK_URL",
    "CUSTOM_WEBHOOK_URL",
    "PAGERDUTY_ROUTING_KEY",
    "TWILIO_ACCOUNT_SID",
    "TWILIO_AUTH_TOKEN",
    "TWILIO_FROM",
    "ALERT_SMS_TO",
    "ALERT_LOG_PATH",
    "CUSTOM_WEBHOOK_SECRET",
    "ESPN_BASE_URL",
    "OPERATOR_TOKEN",
    "SHARD_ID",
    "INSTANCE_ID",
];

/// Settings of a program: environment variables.
pub type Settings = BTreeMap<String, String>;

/// All programs, in the order in which they were started.
#[derive(Debug)]
pub struct Programs {
    folder: PathBuf,
    logs: PathBuf,
    inherits_services: bool,
    running: Vec<Program>,
}

#[derive(Debug)]
struct Program {
    process: Process,
    port: PortLease,
    is_noted_dead: bool,
}

impl Programs {
    /// Programs found in `folder`, with their logs in `logs`. `inherits_services`: with the shell's own variables for
    /// services, which a private stack must not see.
    #[must_use]
    pub fn new(folder: &Path, logs: &Path, inherits_services: bool) -> Self {
        Self { folder: folder.to_owned(), logs: logs.to_owned(), inherits_services, running: Vec::new() }
    }

    /// Starts the feed on a port of its own and waits until it answers; its base URL.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_feed(&mut self, args: &[&str]) -> Result<String> {
        let port = PortLease::take()?;
        let address = format!("127.0.0.1:{}", port.port());
        let mut command = self.command("arbees-feed")?;
        command.args(args).args(["--listen", &address]);
        self.add("feed", command, port)?;
        self.await_answer("feed", "/baseball/mlb/scoreboard").await?;
        Ok(format!("http://{address}"))
    }

    /// Starts the service `file` as `name` and waits until it says that it is ready; the URL that says so.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(&mut self, name: &str, file: &str, settings: &Settings) -> Result<String> {
        let url = self.launch(name, file, settings)?;
        self.await_answer(name, "/readyz").await?;
        Ok(url)
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// When it cannot be started at all.
    pub fn launch(&mut self, name: &str, file: &str, settings: &Settings) -> Result<String> {
        let port = PortLease::take()?;
        let address = format!("127.0.0.1:{}", port.port());
        let mut command = self.command(file)?;
        command.envs(settings).env("HTTP_LISTEN", &address);
        self.add(name, command, port)?;
        Ok(format!("http://{address}/readyz"))
    }

    fn command(&self, file: &str) -> Result<Command> {
        let path = self.folder.join(file);
        if !path.is_file() {
            bail!("{} is not there: build it with `make build`", path.display());
        }
        let mut command = Command::new(path);
        if !self.inherits_services {
            for name in NOT_INHERITED {
                command.env_remove(name);
            }
        }
        // A proxy that the shell names is not asked for what is on this machine.
        command.env("NO_PROXY", "127.0.0.1,localhost").env("no_proxy", "127.0.0.1,localhost");
        // A group of its own: Ctrl-C goes to us alone, and we stop the others in order.
        command.process_group(0);
        Ok(command)
    }

    fn add(&mut self, name: &str, mut command: Command, port: PortLease) -> Result<()> {
        let log = self.logs.join(format!("{name}.log"));
        let process = Process::spawn(name, &mut command, &log)?;
        self.running.retain(|p| p.process.name() != name);
        self.running.push(Program { process, port, is_noted_dead: false });
        Ok(())
    }

    fn find(&mut self, name: &str) -> Result<&mut Program> {
        let found = self.running.iter_mut().find(|p| p.process.name() == name);
        found.with_context(|| format!("no program {name} was started"))
    }

    /// Waits until `name` answers `path` with 200.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub async fn await_answer(&mut self, name: &str, path: &str) -> Result<()> {
        let program = self.find(name)?;
        let begun = Instant::now();
        loop {
            let seen = match get(program.port.port(), path).await {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) => format!("{status} {body}"),
                Err(seen) => seen,
            };
            if let Some(status) = program.process.ended() {
                bail!("{name} ended ({status}):\n{}", program.process.last_words());
            }
            if begun.elapsed() > READY_LIMIT {
                bail!("{name} is not ready after {READY_LIMIT:?} ({seen}); see {}", program.process.log().display());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// What `name` answers to a GET: status and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn get(&mut self, name: &str, path: &str) -> Result<(u16, String)> {
        let port = self.find(name)?.port.port();
        get(port, path).await.map_err(anyhow::Error::msg)
    }

    /// The process of `name`.
    ///
    /// # Errors
    /// When it was never started.
    pub fn process(&mut self, name: &str) -> Result<&mut Process> {
        Ok(&mut self.find(name)?.process)
    }

    /// Names, health ports and process ids of those that run.
    pub fn all(&self) -> impl Iterator<Item = (&str, u16, u32)> {
        self.running.iter().filter_map(|p| Some((p.process.name(), p.port.port(), p.process.id()?)))
    }

    /// Where their logs are.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Programs that have ended since the last time, each in a line.
    pub fn new_dead(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for program in self.running.iter_mut().filter(|p| !p.is_noted_dead) {
            if let Some(status) = program.process.ended() {
                program.is_noted_dead = true;
                let log = program.process.log().display();
                lines.push(format!("{} ended ({status}); see {log}", program.process.name()));
            }
        }
        lines
    }

    /// Stops `name` in order.
    ///
    /// # Errors
    /// When it had to be killed.
    pub async fn stop(&mut self, name: &str) -> Result<ExitStatus> {
        self.find(name)?.process.stop(Signal::SIGTERM, STOP_LIMIT).await
    }

    /// Stops all: orchestrators first, so that nothing is moved about any more, then the others at once, the feed last. `say`
    /// is told of each.
    ///
    /// # Errors
    /// With the names of those that had to be killed.
    pub async fn stop_all(&mut self, say: impl Fn(&str)) -> Result<()> {
        let rank = |p: &Program| match p.process.name() {
            name if name.starts_with("orchestrator") => 0,
            "feed" => 2,
            _ => 1,
        };
        let mut failures = Vec::new();
        let mut running = std::mem::take(&mut self.running);
        running.retain_mut(|p| p.process.ended().is_none());
        for now in 0..=2 {
            let stopping = running.iter_mut().filter(|p| rank(p) == now).map(|program| async move {
                let result = program.process.stop(Signal::SIGTERM, STOP_LIMIT).await;
                (program.process.name().to_owned(), result)
            });
            for (name, result) in futures::future::join_all(stopping).await {
                match result {
                    Ok(_) => say(&format!("{name} stopped")),
                    Err(error) => {
                        say(&format!("{error:#}"));
                        failures.push(name);
                    }
                }
            }
        }
        if failures.is_empty() { Ok(()) } else { bail!("had to be killed: {}", failures.join(", ")) }
    }
}

/// A bare GET: status and body.
async fn get(port: u16, path: &str) -> Result<(u16, String), String> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), ask).await;
    let answer = answer.map_err(|_| "no answer".to_owned())?.map_err(|e| e.to_string())?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no HTTP")?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((status, body))
}
