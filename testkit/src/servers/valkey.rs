//! A private Redis-compatible server. It keeps nothing: pub/sub is all that is asked of it.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::Binaries;
use super::server::{Recipe, Server};

/// A Valkey (or Redis) server of our own.
#[derive(Debug)]
pub struct Valkey(Server);

impl Deref for Valkey {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.0
    }
}

impl DerefMut for Valkey {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.0
    }
}

impl Valkey {
    /// Starts one; returns when it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(binaries: &Binaries, folder: &Path) -> Result<Self> {
        Self::start_with(binaries, folder, &[]).await
    }

    /// Starts one that replicates `other`.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_replica(binaries: &Binaries, folder: &Path, other: &Self) -> Result<Self> {
        Self::start_with(binaries, folder, &["--replicaof", "127.0.0.1", &other.port().to_string()]).await
    }

    /// Starts a sentinel that watches over `master` under the name `main`, decides alone, and promotes a replica when the
    /// master was silent for half a second.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_sentinel(binaries: &Binaries, folder: &Path, master: &Self) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let file = folder.join("sentinel.conf");
        let settings = format!(
            "sentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 3000\n",
            master.port()
        );
        std::fs::write(&file, settings)?;
        let program = binaries.valkey.clone();
        let recipe = Recipe {
            name: "sentinel",
            log: folder.join("sentinel.log"),
            stop: Signal::SIGTERM,
            probe: |port| Box::pin(probe(port)),
            command: Box::new(move |port| {
                let mut command = Command::new(&program);
                command.arg(&file).args(["--sentinel", "--port", &port.to_string(), "--bind", "127.0.0.1"]);
                command
            }),
        };
        Server::start(recipe).await.map(Self)
    }

    async fn start_with(binaries: &Binaries, folder: &Path, more: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (program, home) = (binaries.valkey.clone(), folder.to_owned());
        let more: Vec<String> = more.iter().map(|m| (*m).to_owned()).collect();
        let recipe = Recipe {
            name: "valkey",
            log: folder.join("valkey.log"),
            stop: Signal::SIGTERM,
            probe: |port| Box::pin(probe(port)),
            command: Box::new(move |port| {
                let mut command = Command::new(&program);
                command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
                command.arg("--dir").arg(&home).args(&more);
                command
            }),
        };
        Server::start(recipe).await.map(Self)
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }
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
