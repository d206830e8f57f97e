//! The past, asked for: why each game moved, what was so at any moment, and whether the promise was kept.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use arbees_core::log::CONTROL;
use arbees_fleet::State;
use arbees_projections::audit::chain;
use arbees_projections::audit::explain::{Explanation, explain};
use arbees_projections::audit::{Moment, Source, sequence_at, state_at};
use arbees_proto::subject::Names;
use arbees_proto::{Payload, v1};
use arbees_testkit::feed::Sim;
use arbees_testkit::servers::Nats;
use serde_json::Value;

use crate::plane::{PATIENCE, Plane, binaries, confirmed, games_of, is, moved, moves};

/// One shard is killed, one drained, one game moved by an operator: what the fault script did.
async fn a_day_with_faults(name: &str, games: usize) -> (Plane, BTreeMap<&'static str, &'static str>) {
    let mut plane = Plane::new(name, Sim::all_live(60.0, games, 24 * 60)).await;
    plane.settings.insert("OPERATOR_TOKEN".into(), "secret".into());
    plane.settings.insert("MAX_GAMES".into(), games.to_string());
    plane.all(4).await;
    plane.until("all games confirmed", |s| is(confirmed(s), games)).await;
    let state = plane.state().await;
    let game = games_of(&state, "shard_03").into_iter().next().unwrap();
    let (code, text) = plane.arbees(&["move", &game, "shard_04"]).await;
    assert_eq!(code, Some(0), "{text}");
    plane
        .until("the game to be moved", |s| if games_of(s, "shard_04").contains(&game) { Ok(()) } else { is(0, 1) })
        .await;
    let drained = games_of(&plane.state().await, "shard_02");
    let (code, text) = plane.arbees(&["drain", "shard_02"]).await;
    assert_eq!(code, Some(0), "{text}");
    plane.until("the drained games to be elsewhere", |s| moved(s, &drained, "shard_02")).await;
    // Judged is nobody before a leader trusts what it hears.
    crate::plane::leader_may_judge().await;
    let lost = games_of(&plane.state().await, "shard_01");
    plane.programs.process("shard_01").unwrap().kill().await;
    plane.until("the lost games to be elsewhere", |s| moved(s, &lost, "shard_01")).await;
    let causes = [
        ("shard_01", "shard shard_01 is lost after"),
        ("shard_02", "ann asks: drain shard_02"),
        ("shard_03", "ann asks: move"),
    ];
    (plane, causes.into())
}

/// Every sequence with its event's time and the state after it, told by one fold from the beginning.
async fn every_state(plane: &Plane) -> Vec<(u64, i64, [u8; 32])> {
    let (_, end) = plane.log.bounds(CONTROL).await.unwrap();
    let mut reader = plane.log.read(CONTROL, Vec::new(), 1, end).await.unwrap();
    let (mut state, mut all) = (State::default(), Vec::new());
    while let Some(stored) = reader.next().await.unwrap() {
        let (_, event) = state.fold(&stored.entry()).unwrap();
        all.push((stored.sequence, event.occurred_at_us, state.hash()));
    }
    all
}

#[tokio::test]
async fn every_move_is_explained_by_what_was_done_and_every_moment_is_as_it_was() {
    let (plane, causes) = a_day_with_faults("audit", 200).await;
    let source = Source::Log(plane.log.clone());
    let end = source.end().await.unwrap();
    let moves = moves(&plane).await;
    assert!(moves.len() >= 100, "{moves:?}");
    for (game, from, at_us) in &moves {
        let explained = explain(&source, &game.parse().unwrap(), end).await.unwrap();
        let stint = explained.stints.iter().find(|s| s.from_us == *at_us).unwrap();
        assert_eq!(stint.before.as_ref(), Some(from));
        assert!(stint.because[0].text.starts_with(causes[from.as_str()]), "{stint:#?}");
        assert_eq!((stint.leader.as_str(), stint.confirmed_us.is_some()), ("orchestrator-1", true));
        // An operator's word needs no candidates.
        assert_eq!(stint.candidates.is_empty(), from != "shard_01", "{stint:#?}");
    }
    let (game, ..) = moves.iter().find(|(_, from, _)| from == "shard_01").unwrap();
    let whole = || async {
        let (code, text) = plane.arbees(&["explain", game]).await;
        let parts =
            ["its shard is lost", "shard shard_01 is lost after", "candidates, best first", "told by file (raised)"];
        if code == Some(0) && parts.iter().all(|part| text.contains(part)) { Ok(()) } else { Err(text) }
    };
    // People are told a second after: others may belong to it.
    arbees_testkit::wait::until("the explanation to be whole", PATIENCE, whole).await.unwrap();
    let before_us = moves.iter().map(|(.., at)| *at).min().unwrap() - 1;
    let at = sequence_at(&source, Moment::Time(before_us)).await.unwrap();
    let earlier = explain(&source, &game.parse().unwrap(), at).await.unwrap();
    assert_eq!((earlier.stints.len(), earlier.stints[0].shard.as_str()), (1, "shard_01"));

    // Any moment, from the log and from the archive, is to the bit what it was.
    plane.verified().await;
    let archive = Source::Archive { pool: plane.pool().await, names: Names::new("") };
    let all = every_state(&plane).await;
    let (first_us, last_us) = (all[0].1, all[all.len() - 1].1);
    for n in 0..1_000_i64 {
        // Spread over the whole time, and at the very events.
        let at_us =
            if n % 2 == 0 { first_us + (last_us - first_us) * n / 999 } else { all[all.len() * n as usize / 1_000].1 };
        let expected = all.iter().rev().find(|(_, time, _)| *time <= at_us).unwrap();
        let source = if n % 5 == 0 { &archive } else { &source };
        let state = state_at(source, Moment::Time(at_us)).await.unwrap();
        assert_eq!((state.head.sequence, state.hash()), (expected.0, expected.2));
    }
    assert_eq!(sequence_at(&source, Moment::Time(first_us - 1)).await.unwrap(), 0, "nothing had happened");
    assert!(state_at(&source, Moment::Sequence(end + 1_000_000)).await.is_err());
    let from_archive: Explanation = explain(&archive, &game.parse().unwrap(), end).await.unwrap();
    let from_log = explain(&source, &game.parse().unwrap(), end).await.unwrap();
    assert_eq!(serde_json::to_value(&from_archive).unwrap(), serde_json::to_value(&from_log).unwrap());
    plane.stop(&["ALERT", "shard_lost", "nats"]).await;
}

/// When a game was watched, worked out anew and in another way: by looking at every hundredth of a second.
fn unwatched_us(events: &[v1::Event], game: &str, until_us: i64) -> i64 {
    const STEP: i64 = 10_000;
    let id = |g: &Option<v1::Game>| g.as_ref().is_some_and(|g| g.id == game);
    let mut marks: Vec<(i64, bool)> = Vec::new();
    let mut owner = String::new();
    let mut live_us = None;
    for event in events {
        let at = event.occurred_at_us;
        match event.payload.as_ref().unwrap() {
            Payload::GameWentLive(e) if e.game == game => live_us = Some(at),
            Payload::GameAssigned(e) if id(&e.game) => owner.clone_from(&e.shard),
            Payload::GameReassigned(e) if id(&e.game) => {
                owner.clone_from(&e.shard);
                marks.push((at, false));
            }
            Payload::AssignmentConfirmed(e) if id(&e.game) => marks.push((at, true)),
            Payload::ServiceLost(e) if e.instance == owner => marks.push((at - e.silent_us, false)),
            _ => {}
        }
    }
    marks.sort_unstable();
    let mut unwatched = 0;
    let mut at = live_us.unwrap();
    while at < until_us {
        let is_watched = marks.iter().rev().find(|(time, _)| *time <= at).is_some_and(|(_, is)| *is);
        unwatched += if is_watched { 0 } else { STEP };
        at += STEP;
    }
    unwatched
}

#[tokio::test]
async fn the_promise_is_counted_as_another_count_has_it_and_the_commands_answer() {
    let (plane, _) = a_day_with_faults("sla", 24).await;
    let (_, end) = plane.log.bounds(CONTROL).await.unwrap();
    let (code, text) = plane.arbees(&["sla", "--json", "--to", &end.to_string()]).await;
    assert_eq!(code, Some(0), "{text}");
    let sla: Value = serde_json::from_str(&text).unwrap();
    let mut events = Vec::new();
    let keep = |stored: arbees_core::log::Stored| {
        events.push(stored.event().unwrap());
        ControlFlow::Continue(())
    };
    Source::Log(plane.log.clone()).read(CONTROL, &[], 1, end, keep).await.unwrap();
    let until_us = sla["until_us"].as_i64().unwrap();
    let games = sla["games"].as_array().unwrap();
    assert_eq!(games.len(), 24);
    for game in games {
        let id = game["game"].as_str().unwrap();
        let (theirs, ours) = (unwatched_us(&events, id, until_us), game["unwatched_us"].as_i64().unwrap());
        assert!((theirs - ours).abs() <= 100_000, "{id}: {ours} by the count, {theirs} by looking");
    }
    assert_eq!(sla["doubled_us"], 0);
    assert_eq!((&sla["automatic"]["of"], &sla["automatic"]["count"]), (&1.into(), &1.into()));
    let recovery = sla["recovery"]["worst_us"].as_i64().unwrap();
    println!("24 games, a shard killed: unwatched {} us in all, recovered after {recovery} us", sla["unwatched_us"]);
    assert!(recovery < 9_000_000, "three times what is promised");

    for (args, code, part) in [
        (vec!["history", "shard", "shard_01"], 0, "is lost after"),
        (vec!["history", "alert", "shard_lost:shard_01"], 0, "[critical] shard_lost:shard_01"),
        (vec!["history", "game", "nfl-1"], 1, "nfl-1 is not known"),
        (vec!["explain", "nfl-1"], 1, "no event of CONTROL is about it"),
        (vec!["diff", "1", "now", "--csv"], 0, "service,shard/shard_01,-,"),
        (vec!["state", "--at", "99999999"], 1, "CONTROL ends at"),
        (vec!["state", "--at", "yesterday"], 2, "allowed are now, a sequence"),
        (vec!["replay", "--type", "DrainStarted"], 0, "shard_02 is drained by ann"),
        (vec!["replay", "--stream", "alerts", "--from", "1", "--json"], 0, "\"AlertRaised\""),
        (vec!["sla", "--from", "1m"], 0, "recovered without a hand"),
        (
            vec!["export", "--type", "GameReassigned"],
            0,
            "stream,sequence,stored_at,occurred_at,subject,event_type,cause",
        ),
        (vec!["export", "--stream", "alerts", "--out", "alerts.csv"], 0, "events of ALERTS in alerts.csv"),
        (vec!["history", "shard", "shard_01", "--archive", "--csv"], 0, "ServiceLost"),
    ] {
        let probe = || async {
            let (was, text) = plane.arbees(&args).await;
            if was == Some(code) && text.contains(part) { Ok(()) } else { Err(format!("{was:?} {text}")) }
        };
        // The archive may be a moment behind.
        arbees_testkit::wait::until(&args.join(" "), PATIENCE, probe).await.unwrap();
    }
    let exported = std::fs::read_to_string(plane.scratch.path().join("alerts.csv")).unwrap();
    assert!(
        exported.lines().skip(1).all(|line| line.starts_with("ALERTS,")) && exported.contains("AlertRaised"),
        "{exported}"
    );
    assert!(!plane.scratch.path().join("alerts.csv.part").exists());
    plane.stop(&["ALERT", "shard_lost", "nats"]).await;
}

/// Each way of falsifying history, with the first sequence that is wrong then. The archive is put back in between.
#[tokio::test]
async fn a_falsified_history_is_found_at_the_first_message_that_is_wrong() {
    let (mut plane, _) = a_day_with_faults("forged", 24).await;
    // Heads are published twice a second: the end is among them.
    let (_, end) = plane.log.bounds(CONTROL).await.unwrap();
    let published = || async {
        let heads = chain::published_heads(&plane.log).await.map_err(|e| e.to_string())?;
        if heads.contains_key(&end) { Ok(heads) } else { Err(format!("{:?} of {end}", heads.keys().next_back())) }
    };
    let (heads, _) = arbees_testkit::wait::until("the end to be published", PATIENCE, published).await.unwrap();
    plane.verified().await;
    let (code, text) = plane.arbees(&["verify", "--full"]).await;
    assert!(code == Some(0) && text.contains("the archive: ") && text.contains("published heads agree"), "{text}");
    plane.programs.stop("projector").await.unwrap();
    let pool = plane.pool().await;
    let archive = Source::Archive { pool: pool.clone(), names: Names::new("") };
    let run = async |sql: &str| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&pool).await.unwrap();
    };
    run("CREATE TABLE arbees.kept AS SELECT * FROM arbees.event_archive").await;
    let of = |what: &str| format!("arbees.event_archive {what} stream = 'CONTROL' AND sequence");
    let swap = "WITH pair AS (SELECT * FROM arbees.event_archive WHERE stream = 'CONTROL' AND sequence IN (60, 61))
                UPDATE arbees.event_archive a SET payload = p.payload, headers = p.headers, subject = p.subject
                FROM pair p WHERE a.stream = 'CONTROL' AND a.sequence IN (60, 61) AND p.sequence = 121 - a.sequence";
    let foreign = format!(
        "INSERT INTO arbees.event_archive SELECT stream, {}, subject, event_type, headers, payload, stored_at
         FROM arbees.event_archive WHERE stream = 'CONTROL' AND sequence = 40",
        end + 1
    );
    let edit = |at: u64| {
        format!("UPDATE {} = {at}", of("SET payload = set_byte(payload, 20, 255 - get_byte(payload, 20)) WHERE"))
    };
    for (what, sql, first) in [
        ("nothing", "SELECT 1".to_owned(), None),
        ("a byte of an event is changed", edit(40), Some(40)),
        ("a byte of the last one", edit(end), Some(end)),
        ("one is dropped", format!("DELETE FROM {} = 50", of("WHERE")), Some(50)),
        ("two are swapped", swap.to_owned(), Some(60)),
        ("the end is cut", format!("DELETE FROM {} > {}", of("WHERE"), end - 3), Some(end - 2)),
        ("a foreign message is added", foreign, Some(end + 1)),
    ] {
        run(&sql).await;
        let proof = chain::prove(&archive, &heads, |_| ()).await.unwrap();
        assert_eq!(proof.first_bad.as_ref().map(|(at, _)| *at), first, "{what}: {proof:?}");
        println!("{what}: {:?}", proof.first_bad);
        run("TRUNCATE arbees.event_archive; INSERT INTO arbees.event_archive SELECT * FROM arbees.kept").await;
    }
    // Somebody who writes all hashes anew from some event on is found by what was published.
    let mut forged = heads.clone();
    let (at, hash) = forged.range_mut(45..).next().unwrap();
    hash[0] ^= 1;
    let at = *at;
    assert_eq!(chain::prove(&archive, &forged, |_| ()).await.unwrap().first_bad.unwrap().0, at);

    // A stream that was built anew, with one byte changed.
    let second = Nats::start(&binaries(), &plane.scratch.path().join("second")).await.unwrap();
    let rebuilt = crate::plane::connect(&second.url()).await;
    rebuilt.ensure_streams().await.unwrap();
    let stream = async_nats::jetstream::new(async_nats::connect(second.url()).await.unwrap());
    let mut reader = plane.log.read(CONTROL, Vec::new(), 1, end).await.unwrap();
    while let Some(stored) = reader.next().await.unwrap() {
        let mut payload = stored.payload.to_vec();
        if stored.sequence == 70 {
            payload[20] ^= 1;
        }
        // Not those that belonged to its batch.
        let mut headers = async_nats::HeaderMap::new();
        for name in ["Arbees-Type", "Arbees-Hash", "Nats-Msg-Id"] {
            headers.insert(name, stored.header(name));
        }
        let sent = stream.publish_with_headers(stored.subject, headers, payload.into()).await.unwrap();
        sent.await.unwrap();
    }
    let proof = chain::prove(&Source::Log(rebuilt), &heads, |_| ()).await.unwrap();
    assert_eq!((proof.first_bad.unwrap().0, proof.messages), (70, end));
    drop(second);
    plane.stop(&["ALERT", "shard_lost", "nats"]).await;
}

/// Every query of the page for people is run as it stands there, and those that many will ask use an index.
#[tokio::test]
async fn the_worked_queries_run_and_the_views_say_what_happened() {
    let (plane, _) = a_day_with_faults("views", 24).await;
    plane.verified().await;
    let pool = plane.pool().await;
    let page = include_str!("../../../docs/queries.md");
    let queries: Vec<&str> = page.split("```sql\n").skip(1).map(|part| part.split("```").next().unwrap()).collect();
    assert!(queries.len() >= 10);
    for query in &queries {
        let sql = sqlx::AssertSqlSafe((*query).to_owned());
        sqlx::query(sql).fetch_all(&pool).await.unwrap_or_else(|e| panic!("{e}\n{query}"));
    }
    let count = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap() };
    let moved = i64::try_from(moves(&plane).await.len()).unwrap();
    assert_eq!(count("SELECT count(*) FROM arbees.v_recent_moves").await, moved);
    assert_eq!(count("SELECT count(*) FROM arbees.v_current_assignments").await, 24);
    assert_eq!(count("SELECT sum(games)::bigint FROM arbees.v_shard_load").await, 24);
    assert_eq!(count("SELECT count(*) FROM arbees.v_unwatched_games").await, 0);
    let lost = "SELECT count(*) FROM arbees.v_recent_moves WHERE cause = 'its shard is lost' AND handover_seconds < 60";
    assert!(count(lost).await > 0);
    let told = "SELECT count(*) FROM arbees.v_alert_timeline WHERE incident = 'shard_lost:shard_01'";
    assert_eq!(count(told).await, 1);
    // On tables this small a scan is cheaper: without scans it shows whether an index fits.
    let mut looking = pool.acquire().await.unwrap();
    sqlx::query("SET enable_seqscan = off").execute(&mut *looking).await.unwrap();
    for query in &queries[..2] {
        let sql = sqlx::AssertSqlSafe(format!("EXPLAIN {query}"));
        let plan: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut *looking).await.unwrap();
        assert!(plan.iter().any(|l| l.contains("Index")) && !plan.iter().any(|l| l.contains("Seq Scan")), "{plan:#?}");
    }
    // Who may only look can look, and nothing else.
    sqlx::query("SET ROLE arbees_reader").execute(&mut *looking).await.unwrap();
    sqlx::query("SELECT * FROM arbees.v_shard_load").fetch_all(&mut *looking).await.unwrap();
    let refused = sqlx::query("DELETE FROM arbees.games").execute(&mut *looking).await.unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    drop(looking);
    plane.stop(&["ALERT", "shard_lost", "nats"]).await;
}
