//! Reading the log back: all of it, and one shard's part.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use arbees_core::log::{CONTROL, Log, SNAPSHOT_EVERY, snapshot_slot};
use arbees_fleet::State;
use arbees_projections::audit::{Moment, Source, state_at};
use arbees_proto::InstanceId;
use arbees_testkit::history::{History, shard_name};
use async_nats::Client;
use async_nats::jetstream::consumer::DeliverPolicy;

use crate::{rates, raw, times};

/// Recoveries measured; the middle one counts.
const RECOVERIES: usize = 9;
/// Moments of the past that are asked for.
const MOMENTS: u64 = 60;

/// Measures both.
pub async fn run(log: &Log, client: &Client, history: &History) -> Result<()> {
    let begun = Instant::now();
    let raw_count = raw::ordered(client, CONTROL, "", DeliverPolicy::All).await?;
    let raw_time = begun.elapsed();

    let (_, end) = log.bounds(CONTROL).await?;
    let begun = Instant::now();
    let mut reader = log.read(CONTROL, Vec::new(), 1, end).await?;
    let mut count = 0;
    while reader.next().await?.is_some() {
        count += 1;
    }
    rates("replay, read only", count, begun.elapsed(), raw_count, raw_time);

    let begun = Instant::now();
    let mut state = State::default();
    log.fold_on(&mut state, end, |_, _| ()).await?;
    rates("replay, decoded, chain checked and folded", end, begun.elapsed(), raw_count, raw_time);
    if state.hash() != history.state().hash() || state.head.skipped != 0 {
        bail!("the log does not fold to the state it was made from");
    }
    recovery(log, client).await?;
    past(log, client, end).await
}

/// The state at moments all over the log, as auditors ask for it: by sequence and by time. Beside it a bare read of as many
/// messages as have to be folded for each.
async fn past(log: &Log, client: &Client, end: u64) -> Result<()> {
    log.fold_leaving_snapshots(None).await?;
    let source = Source::Log(log.clone());
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for n in 1..=MOMENTS {
        // Spread over the log, at every distance from a snapshot.
        let sequence = end * n / MOMENTS - n * 97 % SNAPSHOT_EVERY;
        let moment = if n.is_multiple_of(2) {
            Moment::Sequence(sequence)
        } else {
            Moment::Time(log.get(CONTROL, sequence).await?.event()?.occurred_at_us)
        };
        let begun = Instant::now();
        let state = state_at(&source, moment).await?;
        ours.push(begun.elapsed());
        // What happened at the same time comes with it.
        if state.head.sequence < sequence || (state.head.sequence > sequence && n.is_multiple_of(2)) {
            bail!("the state at {sequence} is that at {}", state.head.sequence);
        }
        let begun = Instant::now();
        raw::range(client, CONTROL, snapshot_slot(sequence) + 1, sequence).await?;
        bare.push(begun.elapsed());
    }
    ours.sort();
    println!("the state at a moment: worst of {MOMENTS} {:.1?}", ours[ours.len() - 1]);
    times("the state at a moment of the past", middle(ours), middle(bare));
    Ok(())
}

async fn recovery(log: &Log, client: &Client) -> Result<()> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..RECOVERIES {
        let name = shard_name(round % 10);
        let begun = Instant::now();
        let (set, tail, _) = log.recover(&InstanceId::strict(&name)?).await?;
        ours.push(begun.elapsed());
        if set.held().len() != 1_000 {
            bail!("{name} recovered {} games", set.held().len());
        }
        drop(tail);
        let begun = Instant::now();
        for filter in log.names().shard_filters(&name) {
            raw::ordered(client, CONTROL, &filter, DeliverPolicy::LastPerSubject).await?;
        }
        bare.push(begun.elapsed());
    }
    times("recovery of a shard with 1,000 games", middle(ours), middle(bare));
    Ok(())
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
