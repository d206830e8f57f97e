//! A private NATS server with JetStream that syncs before it acknowledges.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::{Binaries, PortLease};
use crate::process::Process;

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A NATS server of our own.
#[derive(Debug)]
pub struct Nats {
    process: Process,
    port: PortLease,
    program: PathBuf,
    folder: PathBuf,
}

impl Nats {
    /// Starts one with its data in `folder`; returns when JetStream answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(binaries: &Binaries, folder: &Path) -> Result<Self> {
        let mut server = Self::launch(&binaries.nats_server, folder, PortLease::take()?, "")?;
        server.await_ready().await?;
        Ok(server)
    }

    /// Starts one that is too old to be accepted.
    ///
    /// # Errors
    /// When it cannot be fetched or does not start.
    pub async fn start_old(folder: &Path, say: &dyn Fn(&str)) -> Result<Self> {
        let program = super::binaries::old_nats(say)?;
        let mut server = Self::launch(&program, folder, PortLease::take()?, "")?;
        server.await_ready().await?;
        Ok(server)
    }

    /// Starts one with `more` in its configuration, and does not wait.
    pub(super) fn launch(program: &Path, folder: &Path, port: PortLease, more: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let config = format!(
            "listen: \"127.0.0.1:{}\"\npid_file: {:?}\njetstream {{\n  store_dir: {:?}\n  sync_interval: always\n}}\n{more}",
            port.port(),
            folder.join("nats.pid"),
            folder.join("data"),
        );
        std::fs::write(folder.join("nats.conf"), config)?;
        let process = spawn(program, folder)?;
        Ok(Self { process, port, program: program.to_owned(), folder: folder.to_owned() })
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port.port())
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

    /// Its process.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it as `kill -9` does.
    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Starts it again after it ended, on the same port and data.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.program, &self.folder)?;
        self.await_ready().await
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// When it had to be killed.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop(Signal::SIGTERM, STOP_LIMIT).await.map(drop)
    }

    pub(super) async fn await_ready(&mut self) -> Result<()> {
        let port = self.port.port();
        let ready = crate::wait::until("JetStream to answer", START_LIMIT, || probe(port)).await;
        match (ready, self.process.ended()) {
            (_, Some(status)) => bail!("nats-server ended ({status}):\n{}", self.process.last_words()),
            (Err(error), None) => Err(error.context(self.process.last_words())),
            (Ok(_), None) => Ok(()),
        }
    }
}

fn spawn(program: &Path, folder: &Path) -> Result<Process> {
    let mut command = Command::new(program);
    command.arg("--config").arg(folder.join("nats.conf")).process_group(0);
    Process::spawn("nats-server", &mut command, &folder.join("nats.log"))
}

/// A JetStream API request in the bare protocol.
async fn probe(port: u16) -> Result<(), String> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let hello = b"CONNECT {\"verbose\":false}\r\nSUB probe 1\r\nPUB $JS.API.INFO probe 0\r\n\r\n";
        stream.write_all(hello).await?;
        let mut lines = BufReader::new(stream).lines();
        while let Some(line) = lines.next_line().await? {
            if line.starts_with("MSG probe") {
                return Ok(());
            }
        }
        Err(std::io::Error::other("connection closed"))
    };
    let answered = tokio::time::timeout(Duration::from_secs(1), ask).await;
    answered.map_err(|_| "no answer".to_owned())?.map_err(|e| e.to_string())
}
