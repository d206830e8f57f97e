//! A private Redis-compatible server. It keeps nothing: pub/sub is all that is asked of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::{Binaries, PortLease};
use crate::process::Process;

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A Valkey (or Redis) server of our own.
#[derive(Debug)]
pub struct Valkey {
    process: Process,
    port: PortLease,
    program: PathBuf,
    folder: PathBuf,
}

impl Valkey {
    /// Starts one; returns when it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(binaries: &Binaries, folder: &Path) -> Result<Self> {
        let port = PortLease::take()?;
        std::fs::create_dir_all(folder)?;
        let process = spawn(&binaries.valkey, folder, port.port())?;
        let mut server = Self { process, port, program: binaries.valkey.clone(), folder: folder.to_owned() };
        server.await_ready().await?;
        Ok(server)
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port.port())
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.port()
    }

    /// Ends it as `kill -9` does.
    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Starts it again after it ended, on the same port.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.program, &self.folder, self.port.port())?;
        self.await_ready().await
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// When it had to be killed.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop(Signal::SIGTERM, STOP_LIMIT).await.map(drop)
    }

    async fn await_ready(&mut self) -> Result<()> {
        let port = self.port.port();
        let ready = crate::wait::until("valkey to answer", START_LIMIT, || probe(port)).await;
        match (ready, self.process.ended()) {
            (_, Some(status)) => bail!("valkey ended ({status}):\n{}", self.process.last_words()),
            (Err(error), None) => Err(error.context(self.process.last_words())),
            (Ok(_), None) => Ok(()),
        }
    }
}

fn spawn(program: &Path, folder: &Path, port: u16) -> Result<Process> {
    let mut command = Command::new(program);
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
        .arg(folder)
        .process_group(0);
    Process::spawn("valkey", &mut command, &folder.join("valkey.log"))
}

async fn probe(port: u16) -> Result<(), String> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await?;
        if answer == *b"+PONG\r\n" { Ok(()) } else { Err(std::io::Error::other("no PONG")) }
    };
    let answered = tokio::time::timeout(Duration::from_secs(1), ask).await;
    answered.map_err(|_| "no answer".to_owned())?.map_err(|e| e.to_string())
}
