//! A whole plane for a test: private servers, a feed of its own, and the real programs as processes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use arbees_core::bus::{Bus, RedisConfig};
use arbees_core::config::LogConfig;
use arbees_core::db;
use arbees_core::log::{self, CONTROL, HEARTBEATS, Log};
use arbees_core::retry::Policy;
use arbees_fleet::{State, Status};
use arbees_projections::verify::{Report, verify};
use arbees_proto::subject::Names;
use arbees_proto::{GameId, Payload, ServiceKind, v1};
use arbees_testkit::feed::{Feed, Show};
use arbees_testkit::programs::{Programs, Settings};
use arbees_testkit::servers::{Binaries, Nats, Postgres, Scratch, Valkey};
use arbees_testkit::wait;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything that is not promised a time.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct Plane {
    pub nats: Nats,
    pub valkey: Valkey,
    pub postgres: Postgres,
    pub programs: Programs,
    pub settings: Settings,
    /// Serves for as long as the plane lives.
    pub feed: Feed,
    pub log: Log,
    pub scratch: Scratch,
}

pub fn binaries() -> Binaries {
    Binaries::find(&|line| println!("{line}")).unwrap()
}

/// Where the programs lie: beside the one that cargo names.
pub fn programs_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_arbees")).parent().unwrap().to_owned()
}

pub async fn connect(url: &str) -> Log {
    connect_to(url, 1).await
}

pub async fn connect_to(urls: &str, replicas: u32) -> Log {
    let config = LogConfig { url: urls.to_owned(), creds: None, names: Names::new(""), replicas };
    log::connect("test", &config, &CancellationToken::new()).await.unwrap()
}

pub fn settings(pairs: &[(&str, &str)]) -> Settings {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// What a busy machine alone can cause, and what mends itself: a stall longer than a heartbeat.
const BUSY: [&str; 2] = ["tail broke", "append not acknowledged"];

impl Plane {
    /// Servers and a feed that shows `show`; no program yet.
    pub async fn new(name: &str, show: impl Show) -> Self {
        let scratch = Scratch::new(name).unwrap();
        let nats = Nats::start(&binaries(), &scratch.path().join("nats")).await.unwrap();
        let postgres = Postgres::start(&binaries(), &scratch.path().join("postgres")).await.unwrap();
        Self::over(scratch, nats, postgres, show).await
    }

    /// The same over these servers.
    pub async fn over(scratch: Scratch, nats: Nats, postgres: Postgres, show: impl Show) -> Self {
        let valkey = Valkey::start(&binaries(), &scratch.path().join("valkey")).await.unwrap();
        let feed = Feed::serve("127.0.0.1:0".parse().unwrap(), show).await.unwrap();
        let log = connect(&nats.url()).await;
        log.ensure_streams().await.unwrap();
        let settings = settings(&[
            ("NATS_URL", &nats.url()),
            ("REDIS_URL", &valkey.url()),
            ("DATABASE_URL", &postgres.url()),
            ("ESPN_BASE_URL", &feed.url()),
            ("DISCOVERY_INTERVAL_SECS", "1"),
            ("POLL_INTERVAL", "0.2"),
            // On the first day the leader waits for shards that beat on Redis only.
            ("HEARTBEAT_INTERVAL_SECS", "1"),
            ("ESPN_CB_RECOVERY_TIMEOUT_SECS", "2"),
            ("REDIS_RECONNECT_BASE_DELAY_MS", "100"),
            ("REDIS_RECONNECT_MAX_DELAY_MS", "1000"),
            ("REDIS_RECONNECT_COOLDOWN_SECS", "2"),
            ("ALERT_LOG_PATH", &scratch.path().join("alerts.log").to_string_lossy()),
        ]);
        let programs = Programs::new(&programs_folder(), &scratch.path().join("logs"), false);
        Self { nats, valkey, postgres, programs, settings, feed, log, scratch }
    }

    /// The settings of all programs, with these in place of theirs.
    pub fn with(&self, pairs: &[(&str, &str)]) -> Settings {
        let mut all = self.settings.clone();
        all.extend(settings(pairs));
        all
    }

    pub async fn orchestrator(&mut self) {
        self.programs.start("orchestrator", "arbees-orchestrator", &self.settings).await.unwrap();
    }

    pub async fn projector(&mut self) {
        self.programs.start("projector", "arbees-projector", &self.settings).await.unwrap();
    }

    pub async fn shard(&mut self, name: &str) {
        let own = self.with(&[("SHARD_ID", name)]);
        self.programs.start(name, "arbees-shard", &own).await.unwrap();
    }

    /// All of it with so many shards.
    pub async fn all(&mut self, shards: usize) {
        self.projector().await;
        self.orchestrator().await;
        for n in 1..=shards {
            self.shard(&format!("shard_{n:02}")).await;
        }
    }

    pub fn bus(&self) -> Bus {
        let mut config = RedisConfig::at(&self.valkey.url());
        config.reconnect.policy = Policy::patient();
        Bus::open(&config).unwrap()
    }

    pub async fn pool(&self) -> PgPool {
        PgPool::connect_with(db::options(&self.postgres.url(), db::SCHEMA).unwrap()).await.unwrap()
    }

    /// Exit code and output of `arbees` with these arguments, for this plane.
    pub async fn arbees(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_arbees"));
        command.args(args).envs(&self.settings).env("USER", "ann");
        // Not the stack that may be up in this folder.
        command.current_dir(self.scratch.path());
        let out = command.output().await.unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.code(), text)
    }

    /// The fold of the log as it is now.
    pub async fn state(&self) -> State {
        self.log.fold(None).await.unwrap()
    }

    /// Waits until the fold of the log is as `wanted` says; an error tells what it is instead.
    pub async fn until(&self, what: &str, wanted: impl Fn(&State) -> Result<(), String>) -> (State, Duration) {
        let probe = || async {
            let state = self.log.fold(None).await.map_err(|e| e.to_string())?;
            wanted(&state)?;
            Ok::<_, String>(state)
        };
        wait::until(what, PATIENCE, probe).await.unwrap_or_else(|e: anyhow::Error| panic!("{e:#}"))
    }

    /// How many events of this type the log holds.
    pub async fn count(&self, event_type: &str) -> usize {
        self.events().await.iter().filter(|(t, _)| t == event_type).count()
    }

    /// Every event of CONTROL with its type.
    pub async fn events(&self) -> Vec<(String, v1::Event)> {
        let (_, end) = self.log.bounds(CONTROL).await.unwrap();
        let mut reader = self.log.read(CONTROL, Vec::new(), 1, end).await.unwrap();
        let mut events = Vec::new();
        while let Some(stored) = reader.next().await.unwrap() {
            events.push((stored.header("Arbees-Type").to_owned(), stored.event().unwrap()));
        }
        events
    }

    /// The last heartbeat of a shard on the log.
    pub async fn last_beat(&self, shard: &str) -> Option<v1::Heartbeat> {
        let subject = self.log.names().heartbeat(ServiceKind::Shard, shard);
        let stored = self.log.last_on(HEARTBEATS, &subject).await.ok()??;
        match stored.event().ok()?.payload? {
            Payload::Heartbeat(beat) => Some(beat),
            _ => None,
        }
    }

    /// Waits until the tables stand at the end of the log, and compares them with it.
    pub async fn verified(&self) -> Report {
        let pool = self.pool().await;
        let (_, end) = self.log.bounds(CONTROL).await.unwrap();
        let probe = || async {
            let report = verify(&self.log, &pool, |_, _| ()).await.map_err(|e| e.to_string())?;
            if report.sequence < end { Err(format!("at {} of {end}", report.sequence)) } else { Ok(report) }
        };
        let (report, _) = wait::until("the tables to catch up", PATIENCE, probe).await.unwrap();
        assert_eq!(report.first_differences, [] as [String; 0]);
        assert_eq!((report.differences, report.invalid_messages), (0, 0));
        report
    }

    /// What a program measures under this name, over all labels.
    pub async fn metric(&mut self, program: &str, name: &str) -> f64 {
        let (_, text) = self.programs.get(program, "/metrics").await.unwrap();
        let is_it = |l: &&str| l.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        text.lines().filter(is_it).map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The time that a program has computed for, in seconds.
    pub fn cpu_seconds(&mut self, program: &str) -> f64 {
        let id = self.programs.process(program).unwrap().id().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // User and system time in ticks, of which Linux has a hundred a second.
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }

    /// Stops all programs, and fails on any line that says WARN or ERROR and that `allowed` does not know.
    pub async fn stop(mut self, allowed: &[&str]) {
        self.programs.stop_all(|_| ()).await.unwrap();
        let mut complaints = Vec::new();
        for entry in std::fs::read_dir(self.scratch.path().join("logs")).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let is_complaint = |l: &&str| l.contains(" WARN ") || l.contains(" ERROR ") || l.contains("panicked");
            let lines = text.lines().filter(is_complaint).map(ToOwned::to_owned);
            complaints.extend(lines.filter(|l| !allowed.iter().chain(&BUSY).any(|a| l.contains(a))));
        }
        assert_eq!(complaints, [] as [String; 0], "lines that no list allows");
        self.postgres.stop().await.unwrap();
        self.valkey.stop().await.unwrap();
        self.nats.stop().await.unwrap();
    }
}

/// The owner of `game`, if it has one.
pub fn owner(state: &State, game: &str) -> Option<String> {
    let game = state.games.get(&game.parse::<GameId>().unwrap())?;
    game.owner.as_ref().map(|o| o.shard.to_string())
}

/// The games that `shard` owns.
pub fn games_of(state: &State, shard: &str) -> BTreeSet<String> {
    let its = state.games.iter().filter(|(_, g)| g.owner.as_ref().is_some_and(|o| o.shard.as_str() == shard));
    its.map(|(id, _)| id.to_string()).collect()
}

/// The shard that owns the most games.
pub fn busiest(state: &State) -> String {
    let most = state.loads().into_iter().max_by_key(|(_, n)| *n);
    most.map(|(shard, _)| shard.to_string()).unwrap()
}

/// None of `games` is the shard's any more, and all are reported by their owners.
pub fn moved(state: &State, games: &BTreeSet<String>, from: &str) -> Result<(), String> {
    let its = state.games.iter().filter(|(id, _)| games.contains(id.as_str()));
    let owners = its.map(|(_, g)| g.owner.as_ref().filter(|o| o.shard.as_str() != from && o.confirmed_at_us.is_some()));
    is(owners.flatten().count(), games.len())
}

/// Each move in the log: game, from, when.
pub async fn moves(plane: &Plane) -> Vec<(String, String, i64)> {
    let of = |(_, event): (String, v1::Event)| match event.payload {
        Some(Payload::GameReassigned(m)) => Some((m.game.unwrap().id, m.from, event.occurred_at_us)),
        _ => None,
    };
    plane.events().await.into_iter().filter_map(of).collect()
}

/// Whether the log says that the shard is well.
pub fn well(state: &State, shard: &str) -> bool {
    let service = state.services.iter().find(|(key, _)| key.instance.as_str() == shard);
    service.is_some_and(|(_, s)| s.status == Status::Healthy)
}

/// Nobody is judged for a lease and two seconds after a takeover: that time is the rule itself, and no event tells its end.
pub async fn leader_may_judge() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

/// What became of a fault, in a line: the rows of CHAOS_TESTING.md.
pub fn row(what: &str, detected: Duration, recovered: Duration, lost: u64, alerts: usize) {
    println!(
        "{what}: detected after {detected:.1?}, recovered {recovered:.1?} after its end, {lost} lost, {alerts} alert(s)"
    );
}

/// So many games that are owned, and whose owner has reported them.
pub fn confirmed(state: &State) -> usize {
    state.games.values().filter(|g| g.owner.as_ref().is_some_and(|o| o.confirmed_at_us.is_some())).count()
}

/// `Ok` when `seen` is `wanted`.
#[allow(clippy::needless_pass_by_value)]
pub fn is<T: PartialEq + std::fmt::Debug>(seen: T, wanted: T) -> Result<(), String> {
    if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
}
