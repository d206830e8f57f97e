//! `arbees`: brings the stack up, shows what is so, and proves the tables against the log.

mod addresses;
mod alerts;
mod audit;
mod export;
mod operate;
mod projections;
mod show;
mod table;
mod up;
mod verify;
mod what_if;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use arbees_core::exit::{Exit, report};
use arbees_fleet::decide::operator::Verb;
use arbees_projections::audit::Moment;
use arbees_proto::{GameId, ShardId};
use arbees_testkit::feed::Source;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::operate::Operate;
use crate::projections::Projections;

/// Arbees' control plane.
#[derive(Parser, Debug)]
#[command(
    version,
    after_help = "The projector serves a dashboard, too: `arbees up` and `arbees status` tell where.\n\nExit codes: 0 well, 1 failed or different, 2 wrong configuration, 3 wrong ground, 4 superseded."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start everything on this machine: servers, feed, orchestrator, shards, projector. Ctrl-C stops all in order.
    ///
    /// Example: arbees up --shards 3 --feed sim --speed 60
    Up(Up),
    /// Apply the database migrations at DATABASE_URL and end.
    ///
    /// Example: DATABASE_URL=postgres://arbees@localhost/arbees arbees migrate
    Migrate,
    /// The tables: build them anew, look at messages that were put aside.
    ///
    /// Example: arbees projections rebuild
    Projections {
        #[command(subcommand)]
        what: Projections,
    },
    /// The fleet in a few numbers.
    ///
    /// Example: arbees status --json
    Status(Look),
    /// Games, with who watches them.
    ///
    /// Example: arbees games --all
    Games {
        /// Those that are over, too
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        look: Look,
    },
    /// Shards, with their load and last heartbeat.
    ///
    /// Example: arbees shards
    Shards(Look),
    /// All services that have ever beaten.
    ///
    /// Example: arbees services --json
    Services(Look),
    /// Move all games off a shard, and give it none.
    ///
    /// Example: arbees drain shard_02 --dry-run
    Drain {
        shard: ShardId,
        #[command(flatten)]
        args: Operate,
    },
    /// Give a drained shard games again.
    ///
    /// Example: arbees undrain shard_02
    Undrain {
        shard: ShardId,
        #[command(flatten)]
        args: Operate,
    },
    /// Move one game to a shard.
    ///
    /// Example: arbees move nfl-401547698 shard_01
    Move {
        game: GameId,
        shard: ShardId,
        #[command(flatten)]
        args: Operate,
    },
    /// Keep a game on a shard: the one that has it, or another. It yields to that shard's death and to `move` alone.
    ///
    /// Example: arbees pin nfl-401547698 shard_01
    Pin {
        game: GameId,
        shard: Option<ShardId>,
        #[command(flatten)]
        args: Operate,
    },
    /// Let a pinned game go.
    ///
    /// Example: arbees unpin nfl-401547698
    Unpin {
        game: GameId,
        #[command(flatten)]
        args: Operate,
    },
    /// Stop automatic moves, but for those off lost and stopping shards.
    ///
    /// Example: arbees pause --operator ann
    Pause(Operate),
    /// Let automatic moves go on.
    ///
    /// Example: arbees resume
    Resume(Operate),
    /// Tell a shard all its games again, over Redis.
    ///
    /// Example: arbees resync old_shard_3
    Resync {
        shard: ShardId,
        #[command(flatten)]
        args: Operate,
    },
    /// Incidents that people are told of: those that last, or all.
    ///
    /// Example: arbees alerts --all
    #[command(args_conflicts_with_subcommands = true)]
    Alerts {
        #[command(subcommand)]
        action: Option<AlertAction>,
        /// Those that are over, too
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        look: Look,
    },
    /// Compare the tables with the fold of the log; exit 1 and the differences if there are any.
    ///
    /// Example: arbees verify --full
    Verify {
        /// Prove the log and its archive, too: each message chained to the one before, none missing, the end where the leaders
        /// said that it was
        #[arg(long)]
        full: bool,
        #[command(flatten)]
        look: Look,
    },
    /// Why a game is where it is, or was: who had it, from when to when, what led to each move, who else was thought of, who was
    /// told.
    ///
    /// Example: arbees explain nfl-401547417 --at 21:04
    Explain {
        game: GameId,
        /// With what had happened by then: a sequence, or a time as in 21:04, '2026-11-22 21:04', 2026-11-22T21:04:00Z or 5m (ago)
        #[arg(long, value_name = "MOMENT", value_parser = moment, default_value = "now")]
        at: Moment,
        #[command(flatten)]
        past: Past,
    },
    /// All that happened to a game, a shard or an incident, in its order.
    ///
    /// Example: arbees history shard shard_02
    History {
        #[arg(value_enum)]
        of: HistoryOf,
        /// As in nfl-401547417, shard_02 or shard_lost:shard_02
        id: String,
        #[command(flatten)]
        past: Past,
    },
    /// The fleet as it was at a moment: the fold of the log up to it.
    ///
    /// Example: arbees state --at '2026-11-22 21:04'
    State {
        /// A sequence, or a time as in 21:04, '2026-11-22 21:04', 2026-11-22T21:04:00Z or 5m (ago)
        #[arg(long, value_name = "MOMENT", value_parser = moment, default_value = "now")]
        at: Moment,
        #[command(flatten)]
        past: Past,
    },
    /// What changed between two moments.
    ///
    /// Example: arbees diff 10m now
    Diff {
        #[arg(value_name = "MOMENT", value_parser = moment)]
        from: Moment,
        #[arg(value_name = "MOMENT", value_parser = moment, default_value = "now")]
        to: Moment,
        #[command(flatten)]
        past: Past,
    },
    /// Events of the log as lines, without the database.
    ///
    /// Example: arbees replay --type GameReassigned --from 1h --follow
    Replay {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        past: Past,
    },
    /// Write events as CSV, for notebooks: one line each, with the whole event as JSON.
    ///
    /// Example: arbees export --from 24h --out control.csv
    Export {
        #[command(flatten)]
        which: Which,
        /// The file, there whole or not at all; standard output if none is given
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        past: Past,
    },
    /// What other settings would have done, beside what happened: moves, losses, seconds unwatched, alerts.
    ///
    /// Recorded heartbeats, slates and operators' words are replayed through the leader's own mind. It covers the time for which
    /// heartbeats are kept. FILE has lines of NAME=VALUE, with the names of the variables that decisions go by; what it leaves
    /// out is as in this shell.
    ///
    /// Example: echo LEASE_TTL_MS=5000 > slower && arbees what-if --policy slower --from 2h
    WhatIf {
        /// Lines of NAME=VALUE, as in BRAKE_SHARE_PCT=80
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        #[arg(long, value_name = "MOMENT", value_parser = moment, default_value = "1")]
        from: Moment,
        #[arg(long, value_name = "MOMENT", value_parser = moment, default_value = "now")]
        to: Moment,
        /// List every move of all three
        #[arg(long)]
        moves: bool,
        #[command(flatten)]
        look: Look,
    },
    /// Whether the promise was kept: seconds that games were watched by nobody or by two, and how fast all was found, moved and
    /// recovered, beside the targets.
    ///
    /// Example: arbees sla --from 24h
    Sla {
        /// Events before that are not counted
        #[arg(long, value_name = "MOMENT", value_parser = moment, default_value = "1")]
        from: Moment,
        #[arg(long, value_name = "MOMENT", value_parser = moment, default_value = "now")]
        to: Moment,
        #[command(flatten)]
        past: Past,
    },
}

/// What `history` is of.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum HistoryOf {
    Game,
    Shard,
    Alert,
}

/// Which events.
#[derive(Args, Debug)]
pub struct Which {
    /// The stream: control, alerts, heartbeats, game_states
    #[arg(long, default_value = "control", value_parser = ["control", "alerts", "heartbeats", "game_states"])]
    stream: String,
    /// Only subjects that this filter matches, as in 'arbees.control.game.*'
    #[arg(long, value_name = "FILTER")]
    subject: Option<String>,
    /// Only events of this type, as in GameReassigned
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    #[arg(long, value_name = "MOMENT", value_parser = moment, default_value = "1")]
    from: Moment,
    #[arg(long, value_name = "MOMENT", value_parser = moment, default_value = "now")]
    to: Moment,
    /// Go on with what is new, until Ctrl-C
    #[arg(long, conflicts_with = "to")]
    follow: bool,
}

/// How the past is looked at.
#[derive(Args, Debug)]
pub struct Past {
    /// Read the archive in the database, and not the log
    #[arg(long)]
    archive: bool,
    #[command(flatten)]
    look: Look,
}

fn moment(text: &str) -> Result<Moment, String> {
    Moment::parse(text, &chrono::Local, chrono::Utc::now())
}

#[derive(Subcommand, Debug)]
pub enum AlertAction {
    /// Send a test through every channel that this shell's variables configure, and print what came back.
    ///
    /// Example: SLACK_WEBHOOK_URL=https://hooks.example/x arbees alerts test --channel slack
    Test {
        /// Only this one: file redis slack webhook pagerduty sms
        #[arg(long)]
        channel: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say that somebody has seen an incident: no more reminders, no escalation.
    ///
    /// Example: arbees alerts ack shard_lost:shard_02
    Ack {
        incident: String,
        /// There was nothing to it
        #[arg(long = "false")]
        is_false: bool,
        #[command(flatten)]
        who: Who,
    },
    /// Tell nobody of a kind of alert for a while, or of all kinds: a maintenance window.
    ///
    /// Example: arbees alerts silence all --for 30m
    Silence {
        /// A kind, as in shard_lost, or all
        kind: String,
        /// How long, as in 30m; 0s ends it
        #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
        how_long: Duration,
        #[command(flatten)]
        who: Who,
    },
}

/// Who asks.
#[derive(Args, Debug)]
pub struct Who {
    /// Whose name is written down; the login name if none is given
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    #[command(flatten)]
    look: Look,
}

#[derive(Args, Debug)]
pub struct Up {
    /// How many shards
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=200))]
    shards: u16,
    /// Where games come from: sim (made up), dir:PATH (recordings played back), live (ESPN itself)
    #[arg(long, default_value = "sim")]
    feed: Source,
    /// How many times faster than real the feed plays
    #[arg(long, default_value_t = 60.0)]
    speed: f64,
    /// End by itself after this long, as in 90s, 5m or 2h
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    limit: Option<Duration>,
    /// Keep data and logs here and go on from what is there; without it each run begins anew in ./.arbees
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// One line for each event, nothing rewritten
    #[arg(long)]
    plain: bool,
    /// Use the servers at NATS_URL, REDIS_URL and DATABASE_URL in place of private ones
    #[arg(long)]
    external: bool,
}

#[derive(Args, Debug)]
pub struct Look {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Lists as CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// The folder given to `arbees up --data`
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// `90s`, `5m`, `2h`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("{text:?} is no duration: allowed are numbers with s, m or h behind, as in 90s");
    let digits = text.trim_end_matches(['s', 'm', 'h']);
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(refused()),
    };
    let number: f64 = digits.parse().map_err(|_| refused())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| refused())
}

#[tokio::main]
async fn main() -> ExitCode {
    report("arbees", run(Cli::parse().command).await)
}

async fn run(command: Command) -> Result<(), Exit> {
    if !matches!(command, Command::Up(_)) {
        // `arbees replay | head` ends like any other filter. `up` must live to stop what it started.
        sigpipe::reset();
    }
    let done = match command {
        Command::Up(args) => up::run(args).await,
        Command::Migrate => return show::migrate().await,
        Command::Projections { what } => projections::run(what).await,
        Command::Status(look) => show::status(&look).await,
        Command::Games { all, look } => show::games(&look, all).await,
        Command::Shards(look) => show::services(&look, Some("shard")).await,
        Command::Services(look) => show::services(&look, None).await,
        Command::Drain { shard, args } => operate::run(Verb::Drain { shard }, &args).await,
        Command::Undrain { shard, args } => operate::run(Verb::Undrain { shard }, &args).await,
        Command::Move { game, shard, args } => operate::run(Verb::Move { game, shard }, &args).await,
        Command::Pin { game, shard, args } => operate::run(Verb::Pin { game, shard }, &args).await,
        Command::Unpin { game, args } => operate::run(Verb::Unpin { game }, &args).await,
        Command::Pause(args) => operate::run(Verb::Pause, &args).await,
        Command::Resume(args) => operate::run(Verb::Resume, &args).await,
        Command::Resync { shard, args } => operate::run(Verb::Resync { shard }, &args).await,
        Command::Alerts { action: None, all, look } => alerts::list(&look, all).await,
        Command::Alerts { action: Some(action), .. } => alerts::run(action).await,
        Command::Verify { full, look } => verify::run(full, &look).await,
        Command::Explain { game, at, past } => audit::explain(&game, at, &past).await,
        Command::History { of, id, past } => audit::history(of, &id, &past).await,
        Command::State { at, past } => audit::state(at, &past).await,
        Command::Diff { from, to, past } => audit::diff(from, to, &past).await,
        Command::Replay { which, past } => audit::replay(&which, &past).await,
        Command::Export { which, out, past } => export::run(&which, out.as_deref(), &past).await,
        Command::WhatIf { policy, from, to, moves, look } => what_if::run(&policy, from, to, moves, &look).await,
        Command::Sla { from, to, past } => audit::sla(from, to, &past).await,
    };
    done.map_err(|error| Exit::Failed(format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7_200)));
        for bad in ["", "s", "-1s", "1d", "1sm", "NaN"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        let cli = Cli::command();
        let nested = cli.get_subcommands().flat_map(clap::Command::get_subcommands);
        for command in cli.get_subcommands().chain(nested) {
            let help = command.get_long_about().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example: "), "{}", command.get_name());
        }
    }
}
