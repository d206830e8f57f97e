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
        std::fs::create_dir_all(folder)?;
        let (program, home) = (binaries.valkey.clone(), folder.to_owned());
        let recipe = Recipe {
            name: "valkey",
            log: folder.join("valkey.log"),
            stop: Signal::SIGTERM,
            probe: |port| Box::pin(probe(port)),
            command: Box::new(move |port| {
                let mut command = Command::new(&program);
                command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
                command.arg("--dir").arg(&home);
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
