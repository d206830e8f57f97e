//! A private NATS server with JetStream that syncs before it acknowledges.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::server::{Recipe, Server};
use super::{Binaries, PortLease};

/// A NATS server of our own.
#[derive(Debug)]
pub struct Nats(Server);

impl Deref for Nats {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.0
    }
}

impl DerefMut for Nats {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.0
    }
}

impl Nats {
    /// Starts one with its data in `folder`; returns when JetStream answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(binaries: &Binaries, folder: &Path) -> Result<Self> {
        Self::start_program(&binaries.nats_server, folder).await
    }

    /// Starts one that is too old to be accepted.
    ///
    /// # Errors
    /// When it cannot be fetched or does not start.
    pub async fn start_old(folder: &Path, say: &dyn Fn(&str)) -> Result<Self> {
        Self::start_program(&super::binaries::old_nats(say)?, folder).await
    }

    /// Starts one that acknowledges before it has written, as servers do that nobody told otherwise; where it tells of itself is
    /// the second half.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_lazy(binaries: &Binaries, folder: &Path) -> Result<(Self, String)> {
        let monitor = PortLease::take()?;
        let more = format!("http: \"127.0.0.1:{}\"\n", monitor.port());
        let mut server = Self::launch_with(&binaries.nats_server, folder, PortLease::take()?, "2m", &more)?;
        server.await_ready().await?;
        Ok((server, format!("http://127.0.0.1:{}", monitor.port())))
    }

    async fn start_program(program: &Path, folder: &Path) -> Result<Self> {
        let mut server = Self::launch(program, folder, PortLease::take()?, "")?;
        server.await_ready().await?;
        Ok(server)
    }

    /// Starts one with `more` in its configuration, and does not wait.
    pub(super) fn launch(program: &Path, folder: &Path, port: PortLease, more: &str) -> Result<Self> {
        Self::launch_with(program, folder, port, "always", more)
    }

    fn launch_with(program: &Path, folder: &Path, port: PortLease, sync: &str, more: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let settings = format!(
            "listen: \"127.0.0.1:{}\"\npid_file: {:?}\njetstream {{\n  store_dir: {:?}\n  sync_interval: {sync}\n}}\n{more}",
            port.port(),
            folder.join("nats.pid"),
            folder.join("data"),
        );
        let file = folder.join("nats.conf");
        std::fs::write(&file, settings)?;
        let program = program.to_owned();
        let recipe = Recipe {
            name: "nats-server",
            log: folder.join("nats.log"),
            stop: Signal::SIGTERM,
            probe: |port| Box::pin(probe(port)),
            command: Box::new(move |_| {
                let mut command = Command::new(&program);
                command.arg("--config").arg(&file);
                command
            }),
        };
        Server::launch(recipe, port).map(Self)
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port())
    }
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
