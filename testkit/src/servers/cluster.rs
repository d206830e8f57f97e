//! Three NATS servers that replicate.

use std::path::Path;

use anyhow::Result;

use super::{Binaries, Nats, PortLease};

/// A cluster of three.
#[derive(Debug)]
pub struct Cluster {
    servers: Vec<Nats>,
    _routes: Vec<PortLease>,
}

impl Cluster {
    /// Starts three servers with their data below `folder`; returns when each answers for JetStream.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn start(binaries: &Binaries, folder: &Path) -> Result<Self> {
        let routes = (0..3).map(|_| PortLease::take()).collect::<Result<Vec<_>>>()?;
        let urls: Vec<String> = routes.iter().map(|r| format!("\"nats://127.0.0.1:{}\"", r.port())).collect();
        let mut servers = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let more = format!(
                "server_name: n{index}\ncluster {{\n  name: arbees\n  listen: \"127.0.0.1:{}\"\n  routes: [{}]\n}}\n",
                route.port(),
                urls.join(", "),
            );
            let home = folder.join(format!("n{index}"));
            servers.push(Nats::launch(&binaries.nats_server, &home, PortLease::take()?, &more)?);
        }
        for server in &mut servers {
            server.await_ready().await?;
        }
        Ok(Self { servers, _routes: routes })
    }

    /// Its servers; the ports of their routes stay leased for as long as this lives.
    pub fn servers(&mut self) -> &mut [Nats] {
        &mut self.servers
    }

    /// The URLs of all, comma separated.
    #[must_use]
    pub fn urls(&self) -> String {
        self.servers.iter().map(Nats::url).collect::<Vec<_>>().join(",")
    }

    /// Ends one as `kill -9` does.
    pub async fn kill(&mut self, index: usize) {
        if let Some(server) = self.servers.get_mut(index) {
            server.kill().await;
        }
    }
}
