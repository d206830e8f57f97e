//! What all private servers have in common: a process on a port that stays its own, killed and started again at will.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use tokio::process::Command;

use super::PortLease;
use crate::process::Process;

/// Postgres may have to recover first.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A question in the server's own protocol: whether it serves on this port.
pub(super) type Probe = fn(u16) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// How to run a server.
pub(super) struct Recipe {
    pub name: &'static str,
    pub log: PathBuf,
    /// The signal that stops it in order.
    pub stop: Signal,
    pub probe: Probe,
    /// The command that serves on a port.
    pub command: Box<dyn Fn(u16) -> Command + Send + Sync>,
}

/// A private server. Killed when dropped.
pub struct Server {
    process: Process,
    port: PortLease,
    recipe: Recipe,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on port {}", self.recipe.name, self.port.port())
    }
}

impl Server {
    /// Starts one and does not wait.
    pub(super) fn launch(recipe: Recipe, port: PortLease) -> Result<Self> {
        let process = spawn(&recipe, port.port())?;
        Ok(Self { process, port, recipe })
    }

    /// Starts one and waits until it answers.
    pub(super) async fn start(recipe: Recipe) -> Result<Self> {
        let mut server = Self::launch(recipe, PortLease::take()?)?;
        server.await_ready().await?;
        Ok(server)
    }

    /// Waits until it answers.
    pub(super) async fn await_ready(&mut self) -> Result<()> {
        let (port, probe) = (self.port.port(), self.recipe.probe);
        let what = format!("{} to answer", self.recipe.name);
        let ready = crate::wait::until(&what, START_LIMIT, || probe(port)).await;
        match (ready, self.process.ended()) {
            (_, Some(status)) => bail!("{} ended ({status}):\n{}", self.recipe.name, self.process.last_words()),
            (Err(error), None) => Err(error.context(self.process.last_words())),
            (Ok(_), None) => Ok(()),
        }
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.port()
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Ends it as `kill -9` does.
    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Freezes it: it holds its connections and answers nothing.
    pub fn pause(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Starts it again after it ended, on the same port and data, and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.recipe, self.port.port())?;
        self.await_ready().await
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// When it had to be killed.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop(self.recipe.stop, STOP_LIMIT).await.map(drop)
    }
}

fn spawn(recipe: &Recipe, port: u16) -> Result<Process> {
    let mut command = (recipe.command)(port);
    // A group of its own: Ctrl-C goes to us alone, and we stop the servers last.
    Process::spawn(recipe.name, command.process_group(0), &recipe.log)
}
