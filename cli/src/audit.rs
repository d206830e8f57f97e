//! `arbees explain`, `history`, `state`, `diff`, `replay` and `sla`: the past, from the log.

use std::io::IsTerminal as _;
use std::ops::ControlFlow;

use anyhow::{Result, bail};
use arbees_core::log::{ALERTS, CONTROL, GAME_STATES, HEARTBEATS, Stored};
use arbees_fleet::State;
use arbees_projections::audit::explain::{self, Explanation, Stint};
use arbees_projections::audit::sla::{GameSla, Sla, Spread};
use arbees_projections::audit::story::{self, Line};
use arbees_projections::audit::{self, Moment, Source, Subject, first_from, sequence_at};
use arbees_proto::subject::Names;
use arbees_proto::{GameId, ServiceKind};
use chrono::{DateTime, Local, SecondsFormat, TimeZone as _};
use serde_json::json;

use crate::{HistoryOf, Look, Past, Which, addresses, show, table};

/// Games of a table of many that are listed before the rest is only counted.
const WORST_LISTED: usize = 20;

/// The log; the archive when it is asked for, or when the log is away.
async fn source(past: &Past) -> Result<Source> {
    if !past.archive {
        match addresses::log(&addresses::find(&past.look)?).await {
            Ok(log) => return Ok(Source::Log(log)),
            Err(why) => note(&format!("{why:#}: reading the archive in the database")),
        }
    }
    let addresses = addresses::find(&past.look)?;
    let pool = show::connect(&addresses.database_url).await?;
    Ok(Source::Archive { pool, names: Names::new(&addresses.stream_prefix) })
}

#[allow(clippy::print_stderr)]
pub fn note(text: &str) {
    eprintln!("{text}");
}

fn local(at_us: i64) -> Option<DateTime<Local>> {
    Local.timestamp_micros(at_us).single()
}

/// A moment of this year, in local time, without the year.
pub fn clock(at_us: i64) -> String {
    local(at_us).map_or_else(|| "-".to_owned(), |t| t.format("%m-%d %H:%M:%S%.3f").to_string())
}

pub fn whole(at_us: i64) -> String {
    local(at_us).map_or_else(|| "-".to_owned(), |t| t.to_rfc3339_opts(SecondsFormat::Millis, false))
}

#[allow(clippy::cast_precision_loss)]
pub fn seconds(us: i64) -> String {
    if us.abs() < 1_000_000 { format!("{} ms", us / 1_000) } else { format!("{:.1} s", us as f64 / 1e6) }
}

fn why(line: &Line) -> String {
    match (line.cause.as_str(), line.rule.as_str()) {
        ("", "") => String::new(),
        (cause, "") => cause.to_owned(),
        (cause, rule) => format!("{cause}: {rule}"),
    }
}

/// `arbees explain`
pub async fn explain(game: &GameId, at: Moment, past: &Past) -> Result<()> {
    if past.look.csv {
        bail!("an explanation is no list: --json is for programs");
    }
    let source = source(past).await?;
    let sequence = sequence_at(&source, at).await?;
    let explained = explain::explain(&source, game, sequence).await?;
    if past.look.json {
        return show::print_json(&explained);
    }
    print_explanation(&explained);
    Ok(())
}

fn print_explanation(e: &Explanation) {
    println!("{}  {} at {}, {}", e.game, e.away, e.home, e.phase);
    match e.stints.first() {
        Some(now) if now.until_us.is_none() => println!("watched by {}", now.shard),
        Some(last) => println!("watched by nobody since {}", whole(last.until_us.unwrap_or(0))),
        None => println!("nobody has ever watched it"),
    }
    if let Some(since_us) = e.waits_since_us {
        println!("waits for a shard since {}", whole(since_us));
    }
    e.stints.iter().for_each(print_stint);
    if e.left_out > 0 {
        println!("\n… and {} earlier owners: `arbees history game {}` has them all", e.left_out, e.game);
    }
    println!("\n(CONTROL up to {})", e.sequence);
}

fn print_stint(stint: &Stint) {
    let until = stint.until_us.map_or_else(|| "now".to_owned(), whole);
    println!("\n{}  {} to {until}", stint.shard, whole(stint.from_us));
    let from = stint.before.as_ref().map_or_else(|| "given".to_owned(), |before| format!("moved from {before}"));
    println!("  {from}: {} ({})", stint.cause, stint.rule);
    println!("  decided by {} in term {}, event {} of CONTROL", stint.leader, stint.term, stint.sequence);
    match stint.confirmed_us {
        Some(at_us) => println!("  it said that it watches {} later", seconds(at_us - stint.from_us)),
        None => println!("  it has never said that it watches"),
    }
    for line in &stint.because {
        println!("  because  {}  {}", clock(line.at_us), line.text);
    }
    if !stint.candidates.is_empty() {
        let all: Vec<String> = stint.candidates.iter().map(|c| format!("{} {}", c.shard, c.score)).collect();
        println!("  candidates, best first: {}", all.join(", "));
    }
    if !stint.rejections.is_empty() {
        let all: Vec<String> = stint.rejections.iter().map(|r| format!("{} x {}", r.count, r.code)).collect();
        println!("  passed over: {}", all.join(", "));
    }
    for line in &stint.told {
        let what = if line.event_type == "AlertDelivered" { "told " } else { "alert" };
        println!("  {what}    {}  {}", clock(line.at_us), line.text);
    }
}

/// `arbees history`
pub async fn history(of: HistoryOf, id: &str, past: &Past) -> Result<()> {
    let source = source(past).await?;
    let subject = match of {
        HistoryOf::Game => Subject::Game(id.to_owned()),
        HistoryOf::Shard => Subject::Shard(id.to_owned()),
        HistoryOf::Alert => Subject::Alert(id.to_owned()),
    };
    list(&past.look, &audit::history(&source, &subject).await?)
}

fn list(look: &Look, lines: &[Line]) -> Result<()> {
    let row = |l: &Line| {
        let at = if look.csv { whole(l.at_us) } else { clock(l.at_us) };
        vec![l.sequence.to_string(), at, l.event_type.clone(), l.text.clone(), why(l)]
    };
    let rows: Vec<_> = lines.iter().map(row).collect();
    table::show(look, &["SEQUENCE", "AT", "EVENT", "WHAT", "WHY"], &rows, lines)
}

/// `arbees state`
pub async fn state(at: Moment, past: &Past) -> Result<()> {
    let source = source(past).await?;
    let sequence = sequence_at(&source, at).await?;
    let state = source.fold(sequence).await?;
    let hash = arbees_proto::envelope::hex(&state.hash());
    if past.look.json {
        return show::print_json(&json!({ "state": state, "state_hash": hash }));
    }
    if !past.look.csv {
        if let Moment::Time(at_us) = at {
            println!("as of {}", whole(at_us));
        }
        let head = &state.head;
        println!("CONTROL up to {}, whose last event is of {}", head.sequence, whole(head.occurred_at_us));
        println!("term {}, generation {}, state hash {hash}", head.term, head.generation);
        for (is_so, what) in [
            (state.paused, "automatic moves are paused"),
            (state.shadow, "shadow mode: decided, and not sent"),
            (state.brake_since_us.is_some(), "the brake is on: moves trickle"),
        ] {
            if is_so {
                println!("{what}");
            }
        }
        println!();
        let services = state.services.iter().map(|(key, s)| {
            let load = state.loads().get(&key.instance).copied().unwrap_or(0);
            let games = if key.kind == ServiceKind::Shard { load.to_string() } else { "-".to_owned() };
            let since = clock(s.status_since_us);
            let circuit = s.breaker.circuit.as_str().to_owned();
            vec![key.to_string(), s.status.as_str().to_owned(), since, games, circuit, s.drain.as_str().to_owned()]
        });
        table::print(&["SERVICE", "STATUS", "SINCE", "GAMES", "BREAKER", "DRAIN"], &services.collect::<Vec<_>>());
        println!();
    }
    let games = state.games.iter().map(|(id, g)| {
        let owner = |f: &dyn Fn(&arbees_fleet::state::Owner) -> String| g.owner.as_ref().map_or("-".to_owned(), f);
        let confirmed = owner(&|o| o.confirmed_at_us.map_or_else(|| "not yet".to_owned(), clock));
        vec![
            id.to_string(),
            g.phase.as_str().to_owned(),
            owner(&|o| o.shard.to_string()),
            owner(&|o| clock(o.since_us)),
            confirmed,
            g.queued_since_us.map_or_else(|| "-".to_owned(), clock),
        ]
    });
    let rows: Vec<_> = games.collect();
    table::show(&past.look, &["GAME", "PHASE", "SHARD", "SINCE", "CONFIRMED", "WAITS SINCE"], &rows, &state)
}

/// `arbees diff`
pub async fn diff(from: Moment, to: Moment, past: &Past) -> Result<()> {
    let source = source(past).await?;
    let before = source.fold(sequence_at(&source, from).await?).await?;
    let after = source.fold(sequence_at(&source, to).await?).await?;
    let mut rows = Vec::new();
    let (games, services) = (games_of(&before), services_of(&before));
    differ("game", &games, &games_of(&after), &mut rows);
    differ("service", &services, &services_of(&after), &mut rows);
    let value: Vec<_> = rows.iter().map(|r| json!({ "of": r[0], "id": r[1], "was": r[2], "is": r[3] })).collect();
    if !past.look.json && !past.look.csv {
        println!("CONTROL from {} to {}: {} difference(s)", before.head.sequence, after.head.sequence, rows.len());
    }
    table::show(&past.look, &["OF", "ID", "WAS", "IS"], &rows, &value)
}

type Told = std::collections::BTreeMap<String, String>;

fn games_of(state: &State) -> Told {
    let of = |(id, g): (&GameId, &arbees_fleet::state::Game)| {
        let owner = g.owner.as_ref().map_or_else(|| "nobody".to_owned(), |o| o.shard.to_string());
        let waits = if g.queued_since_us.is_some() { ", waits" } else { "" };
        (id.to_string(), format!("{} with {owner}{waits}", g.phase.as_str()))
    };
    state.games.iter().map(of).collect()
}

fn services_of(state: &State) -> Told {
    let of = |(key, s): (&arbees_fleet::state::ServiceKey, &arbees_fleet::state::Service)| {
        let mut told = s.status.as_str().to_owned();
        if s.breaker.circuit != arbees_fleet::state::Circuit::Closed {
            told += &format!(", breaker {}", s.breaker.circuit.as_str());
        }
        if s.drain != arbees_fleet::state::Drain::No {
            told += &format!(", {}", s.drain.as_str());
        }
        (key.to_string(), format!("{told}, process {}", s.info.process))
    };
    state.services.iter().map(of).collect()
}

fn differ(of: &str, before: &Told, after: &Told, rows: &mut Vec<Vec<String>>) {
    let ids: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for id in ids {
        if before.get(id) != after.get(id) {
            let told = |all: &Told| all.get(id).cloned().unwrap_or_else(|| "-".to_owned());
            rows.push(vec![of.to_owned(), id.clone(), told(before), told(after)]);
        }
    }
}

/// Which events are asked for, and where they are read.
pub struct Range {
    pub source: Source,
    /// The stream.
    pub base: &'static str,
    pub filters: Vec<String>,
    pub from: u64,
    pub to: u64,
}

/// What `which` comes to.
pub async fn range(which: &Which, past: &Past) -> Result<Range> {
    let source = source(past).await?;
    let base = match which.stream.as_str() {
        "alerts" => ALERTS,
        "heartbeats" => HEARTBEATS,
        "game_states" => GAME_STATES,
        _ => CONTROL,
    };
    let (from, to) = match (base, which.from, which.to) {
        // Another stream than CONTROL is found by its own sequences.
        (CONTROL, from, to) => (first_from(&source, from).await?, sequence_at(&source, to).await?),
        (_, Moment::Sequence(from), to) => (from, if let Moment::Sequence(to) = to { to } else { u64::MAX >> 1 }),
        _ => bail!("--from and --to of {base} are sequences: times are looked up in CONTROL alone"),
    };
    Ok(Range { source, base, filters: which.subject.iter().cloned().collect(), from, to })
}

/// `arbees replay`
pub async fn replay(which: &Which, past: &Past) -> Result<()> {
    let Range { source, base, filters, from, to } = range(which, past).await?;
    let is_wanted = |line: &Line| which.event_type.as_ref().is_none_or(|t| *t == line.event_type);
    let mut last = from.saturating_sub(1);
    let mut lines = Vec::new();
    let print = |stored: Stored| {
        last = stored.sequence;
        match story::line(&stored) {
            Some(line) if is_wanted(&line) => {
                if past.look.csv {
                    lines.push(line);
                } else {
                    print_line(&line, past.look.json);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    };
    source.read(base, &filters, from, to, print).await?;
    if past.look.csv {
        return list(&past.look, &lines);
    }
    if which.follow {
        let Source::Log(log) = &source else { bail!("the archive is no log: it cannot be followed") };
        let mut tail = log.tail(base, filters, last + 1);
        while let Some(stored) = tail.next().await {
            if let Some(line) = story::line(&stored).filter(is_wanted) {
                print_line(&line, past.look.json);
            }
        }
    }
    Ok(())
}

fn print_line(line: &Line, as_json: bool) {
    if as_json {
        println!("{}", serde_json::to_string(line).unwrap_or_default());
        return;
    }
    let why = why(line);
    let why = if why.is_empty() { why } else { format!("  [{why}]") };
    println!("{:>8}  {}  {}{why}", line.sequence, clock(line.at_us), line.text);
}

/// `arbees sla`
pub async fn sla(from: Moment, to: Moment, past: &Past) -> Result<()> {
    let source = source(past).await?;
    let is_watched = std::io::stderr().is_terminal();
    let counting = audit::sla(&source, from, to, |done, of| {
        if is_watched {
            note(&format!("{done} of {of} events counted"));
        }
    });
    let sla = counting.await?;
    if past.look.json {
        return show::print_json(&sla);
    }
    let mut worst: Vec<&GameSla> = sla.games.iter().collect();
    worst.sort_by_key(|g| std::cmp::Reverse((g.unwatched_us + g.doubled_us, g.live_us)));
    let row = |g: &&GameSla| {
        let found = g.to_watched_us.map_or_else(|| "-".to_owned(), seconds);
        let (unwatched, doubled) = (seconds(g.unwatched_us), seconds(g.doubled_us));
        vec![g.game.clone(), seconds(g.live_us), unwatched, doubled, found, g.moves.to_string()]
    };
    let header = ["GAME", "IN PLAY", "UNWATCHED", "WATCHED BY TWO", "TO WATCHED", "MOVES"];
    if past.look.csv {
        return table::show(&past.look, &header, &worst.iter().map(row).collect::<Vec<_>>(), &sla);
    }
    println!("{} to {}, {} game(s) in play", whole(sla.from_us), whole(sla.until_us), sla.games.len());
    println!();
    table::print(&["WHAT", "IS", "TARGET"], &figures(&sla));
    println!();
    let shown: Vec<_> = worst.iter().take(WORST_LISTED).map(row).collect();
    table::print(&header, &shown);
    if worst.len() > WORST_LISTED {
        println!("and {} more, none of them worse", worst.len() - WORST_LISTED);
    }
    Ok(())
}

fn figures(sla: &Sla) -> Vec<Vec<String>> {
    let spread = |s: Spread| {
        let of = |t: Option<i64>| t.map_or_else(|| "-".to_owned(), seconds);
        format!("p50 {}, p99 {}, worst {} of {}", of(s.p50_us), of(s.p99_us), of(s.worst_us), s.count)
    };
    #[allow(clippy::cast_precision_loss)]
    let percent = |count: u64, of: u64| match of {
        0 => "none happened".to_owned(),
        of => format!("{:.1} % of {of}", 100.0 * count as f64 / of as f64),
    };
    #[allow(clippy::cast_precision_loss)]
    let share = |us: i64| 100.0 * us as f64 / (sla.live_us.max(1)) as f64;
    let line = |what: &str, is: String, target: &str| vec![what.to_owned(), is, target.to_owned()];
    vec![
        line("unwatched", format!("{} ({:.3} %)", seconds(sla.unwatched_us), share(sla.unwatched_us)), "-"),
        line("watched by two", seconds(sla.doubled_us), "0 ms"),
        line("from known to watched", spread(sla.to_watched), "-"),
        line("hand-over", spread(sla.handover), "-"),
        line("recovery from a lost shard", spread(sla.recovery), "< 120 s"),
        line("recovered without a hand", percent(sla.automatic.count, sla.automatic.of), "> 95 %"),
        line("outages that ended", percent(sla.reconnected.count, sla.reconnected.of), "> 99 %"),
        line("assignments taken up when tried again", percent(sla.retried.count, sla.retried.of), "> 95 %"),
        line("false alarms", percent(sla.false_alarms.count, sla.false_alarms.of), "< 5 %"),
    ]
}
