//! A private Postgres. It refuses to run as root, so there it runs in a user namespace that maps root to nobody; where
//! namespaces are denied, as nobody itself.

use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::process::Command;

use super::server::{Recipe, Server};
use super::small_disk::command_of;
use super::{Binaries, SmallDisk};

/// The user and group without rights, by the numbers that all systems give them.
const NOBODY: u32 = 65_534;
/// User and database.
const NAME: &str = "arbees";

/// A Postgres of our own with an empty database.
#[derive(Debug)]
pub struct Postgres(Server);

impl Deref for Postgres {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.0
    }
}

impl DerefMut for Postgres {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.0
    }
}

/// How to run a program that refuses root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrapper {
    None,
    UserNamespace,
    Nobody,
}

impl Postgres {
    /// Starts one with its data in `folder`, which may hold them already.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(binaries: &Binaries, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        let wrapper = wrapper().await;
        if !folder.join("data").join("PG_VERSION").is_file() {
            initialise(&binaries.postgres, &folder, wrapper).await?;
        }
        let (programs, data) = (binaries.postgres.clone(), folder.join("data"));
        let recipe = Recipe {
            name: "postgres",
            log: folder.join("postgres.log"),
            // Without waiting for its clients to leave.
            stop: Signal::SIGINT,
            probe: |port| Box::pin(probe(port)),
            command: Box::new(move |port| {
                let mut command = command(&programs, "postgres", wrapper);
                // TCP only: the path of a socket under a deep folder can be too long for the system.
                command.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-k", "", "-p", &port.to_string()]);
                command
            }),
        };
        let server = Self(Server::start(recipe).await?);
        server.create_database().await?;
        Ok(server)
    }

    /// Starts one whose data lie on `disk`, and are gone with it.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_on(disk: &SmallDisk, binaries: &Binaries, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (programs, words, data) = (binaries.postgres.clone(), disk.command(), disk.folder().join("pg"));
        let recipe = Recipe {
            name: "postgres",
            log: folder.join("postgres.log"),
            stop: Signal::SIGINT,
            probe: |port| Box::pin(probe(port)),
            command: Box::new(move |port| {
                let mut command = command_of(&words);
                // Whoever may mount is root there, and Postgres will not run as root.
                command.args(["unshare", "--user", "--map-user=65534", "--map-group=65534", "--", "sh", "-c"]);
                let script = "test -f \"$1/PG_VERSION\" || \"$0/initdb\" --username arbees --auth trust --encoding UTF8 --locale C --no-sync \
                              --pgdata \"$1\" >/dev/null; exec \"$0/postgres\" -D \"$1\" -h 127.0.0.1 -k '' -p \"$2\" \
                              -c max_wal_size=32MB -c wal_init_zero=on";
                command.arg(script).arg(&programs).arg(&data).arg(port.to_string());
                command
            }),
        };
        let server = Self(Server::start(recipe).await?);
        server.create_database().await?;
        Ok(server)
    }

    /// The URL of its database.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.port(), NAME)
    }

    async fn create_database(&self) -> Result<()> {
        let mut connection = PgConnection::connect(&url(self.port(), "postgres")).await?;
        let exists = sqlx::query("SELECT 1 FROM pg_database WHERE datname = $1").bind(NAME);
        if exists.fetch_optional(&mut connection).await?.is_none() {
            connection.execute("CREATE DATABASE arbees").await?;
        }
        Ok(connection.close().await?)
    }
}

async fn probe(port: u16) -> Result<(), String> {
    let connection = PgConnection::connect(&url(port, "postgres")).await.map_err(|e| e.to_string())?;
    connection.close().await.map_err(|e| e.to_string())
}

fn url(port: u16, database: &str) -> String {
    // Whatever PGSSLMODE says: this server has no TLS.
    format!("postgres://{NAME}@127.0.0.1:{port}/{database}?sslmode=disable")
}

fn command(programs: &Path, program: &str, wrapper: Wrapper) -> Command {
    let path = programs.join(program);
    match wrapper {
        Wrapper::None => Command::new(path),
        Wrapper::UserNamespace => {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-user=65534", "--map-group=65534", "--"]).arg(path);
            command
        }
        Wrapper::Nobody => {
            let mut command = Command::new("setpriv");
            // By number: the group of nobody has another name on other systems.
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(path);
            command
        }
    }
}

async fn wrapper() -> Wrapper {
    let is_known = User::from_uid(Uid::effective()).is_ok_and(|u| u.is_some());
    if is_known && !Uid::effective().is_root() {
        return Wrapper::None;
    }
    let mut probe = Command::new("unshare");
    probe.args(["--user", "--map-user=65534", "--map-group=65534", "--", "true"]);
    let works = probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    if works.is_ok_and(|s| s.success()) { Wrapper::UserNamespace } else { Wrapper::Nobody }
}

async fn initialise(programs: &Path, folder: &Path, wrapper: Wrapper) -> Result<()> {
    let data = folder.join("data");
    std::fs::create_dir_all(&data)?;
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700))?;
    if wrapper == Wrapper::Nobody {
        std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY))?;
    }
    let mut initdb = command(programs, "initdb", wrapper);
    initdb.args([
        "--username",
        NAME,
        "--auth",
        "trust",
        "--encoding",
        "UTF8",
        "--locale",
        "C",
        "--no-sync",
        "--pgdata",
    ]);
    let out = initdb.arg(&data).stdin(Stdio::null()).output().await.context("starting initdb")?;
    if !out.status.success() {
        bail!("initdb failed:\n{}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}
