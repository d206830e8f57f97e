//! A link that can be cut, slowed and muted: a TCP proxy in front of a server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Open,
    /// All connections are closed, and new ones at once.
    Cut,
    /// Whatever comes is passed on so much later, each way.
    Slow(Duration),
    /// Connections are taken, and nothing is passed on.
    Mute,
}

/// A proxy to one server. Ends when dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    mood: Arc<watch::Sender<Mood>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Link {
    /// A link to the server on `port`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn to(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mood = Arc::new(watch::channel(Mood::Open).0);
        let state = mood.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, port, state.subscribe()));
            }
        });
        Ok(Self { address, mood, accepting })
    }

    /// The port on this side.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Closes all connections and refuses new ones.
    pub fn cut(&self) {
        self.mood.send_replace(Mood::Cut);
    }

    /// Passes everything on so much later, each way.
    pub fn slow(&self, by: Duration) {
        self.mood.send_replace(Mood::Slow(by));
    }

    /// Takes connections and keeps them, and passes nothing on until it is mended.
    pub fn mute(&self) {
        self.mood.send_replace(Mood::Mute);
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.mood.send_replace(Mood::Open);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
        self.mood.send_replace(Mood::Cut);
    }
}

async fn carry(client: TcpStream, port: u16, mut mood: watch::Receiver<Mood>) {
    if *mood.borrow() == Mood::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (up, down) = (mood.clone(), mood.clone());
    tokio::select! {
        // However it ends, both sides see their connection close.
        () = pump(from_client, to_server, up) => {}
        () = pump(from_server, to_client, down) => {}
        _ = mood.wait_for(|m| *m == Mood::Cut) => {}
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut mood: watch::Receiver<Mood>) {
    let mut chunk = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        if mood.wait_for(|m| *m != Mood::Mute).await.is_err() {
            return;
        }
        let now = *mood.borrow();
        if let Mood::Slow(by) = now {
            tokio::time::sleep(by).await;
        }
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}
