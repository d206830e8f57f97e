//! A private NATS server with JetStream that syncs before it acknowledges.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::server::{Recipe, Server};
use super::small_disk::command_of;
use super::{Binaries, PortLease, SmallDisk};

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
        let mut server = Self::launch_with(&binaries.nats_server, folder, PortLease::take()?, "2m", &more, None)?;
        server.await_ready().await?;
        Ok((server, format!("http://127.0.0.1:{}", monitor.port())))
    }

    /// Starts one whose data lie on `disk`.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_on(disk: &SmallDisk, binaries: &Binaries, folder: &Path) -> Result<Self> {
        let (port, disk) = (PortLease::take()?, Some(disk));
        let mut server = Self::launch_with(&binaries.nats_server, folder, port, "always", "", disk)?;
        server.await_ready().await?;
        Ok(server)
    }

    async fn start_program(program: &Path, folder: &Path) -> Result<Self> {
        let mut server = Self::launch(program, folder, PortLease::take()?, "")?;
        server.await_ready().await?;
        Ok(server)
    }

    /// Starts one with `more` in its configuration, and does not wait.
    pub(super) fn launch(program: &Path, folder: &Path, port: PortLease, more: &str) -> Result<Self> {
        Self::launch_with(program, folder, port, "always", more, None)
    }

    fn launch_with(
        program: &Path,
        folder: &Path,
        port: PortLease,
        sync: &str,
        more: &str,
        disk: Option<&SmallDisk>,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let data = disk.map_or_else(|| folder.join("data"), |disk| disk.folder().to_owned());
        // A small disk is not to be reckoned with before it is full.
        let store = if disk.is_some() { "  max_file_store: 64GB\n" } else { "" };
        let settings = format!(
            "listen: \"127.0.0.1:{}\"\npid_file: {:?}\njetstream {{\n  store_dir: {data:?}\n  sync_interval: {sync}\n{store}}}\n{more}",
            port.port(),
            folder.join("nats.pid"),
        );
        let file = folder.join("nats.conf");
        std::fs::write(&file, settings)?;
        let mut words = disk.map_or_else(Vec::new, SmallDisk::command);
        words.push(program.to_string_lossy().into_owned());
        let recipe = Recipe {
            name: "nats-server",
            log: folder.join("nats.log"),
            stop: Signal::SIGTERM,
            probe: |port| Box::pin(probe(port)),
            command: Box::new(move |_| {
                let mut command = command_of(&words);
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
