//! Batches of 100 conditional events: through the append protocol, and the same bytes by the bare client.

use std::time::Instant;

use anyhow::{Result, bail};
use arbees_core::config::LogConfig;
use arbees_core::log;
use arbees_fleet::append::Outcome;
use arbees_proto::envelope::{HEADER_HASH, HEADER_TYPE, hex};
use arbees_proto::subject::Names;
use arbees_proto::{Sealed, v1};
use arbees_testkit::history::History;
use async_nats::{Client, HeaderMap};
use tokio_util::sync::CancellationToken;

use crate::{Args, rates, raw};

const BATCH: usize = 100;

/// Measures both, turn about, so that neither has the quieter machine.
pub async fn run(client: &Client, args: &Args) -> Result<()> {
    let host = client.server_info();
    let url = format!("nats://127.0.0.1:{}", host.port);
    let ours = deployment(&url, "bench-ours").await?;
    let bare = deployment(&url, "bench-raw").await?;
    let never = CancellationToken::new();
    let (mut our_time, mut raw_time) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
    let mut expected = 0;
    for number in 0..args.batches {
        let batch = batch_of(number);
        let mine = renamed(&batch, &ours);
        let begun = Instant::now();
        let outcome = ours.append(expected, &mine, &never).await?;
        our_time += begun.elapsed();
        if !matches!(outcome, Outcome::Stored { .. }) {
            bail!("batch {number}: {outcome:?}");
        }
        let messages: Vec<_> =
            renamed(&batch, &bare).into_iter().map(|e| (e.subject.clone(), headers(&e), e.payload)).collect();
        let begun = Instant::now();
        raw::batch(client, &format!("raw-{number}"), expected, &messages).await?;
        raw_time += begun.elapsed();
        expected += BATCH as u64;
    }
    let count = args.batches * BATCH as u64;
    rates("append, conditional batches of 100", count, our_time, count, raw_time);
    Ok(())
}

async fn deployment(url: &str, prefix: &str) -> Result<log::Log> {
    let config = LogConfig { url: url.to_owned(), creds: None, names: Names::new(prefix), replicas: 1 };
    let log = log::connect("bench", &config, &CancellationToken::new()).await?;
    log.ensure_streams().await?;
    Ok(log)
}

/// A batch of real decisions with ids of its own.
fn batch_of(number: u64) -> Vec<Sealed> {
    let mut history = History::new(3, 1_000);
    let mut events = Vec::new();
    while events.len() < BATCH {
        events.extend(history.turn().1);
    }
    events.truncate(BATCH);
    for (index, event) in events.iter_mut().enumerate() {
        let seed = (number * BATCH as u64 + index as u64).to_le_bytes();
        event.id = arbees_proto::EventId::derive(event.event.occurred_at_us, &[&seed]);
    }
    events
}

/// The same events on the subjects of another deployment.
fn renamed(events: &[Sealed], log: &log::Log) -> Vec<Sealed> {
    let subject = |e: &v1::Event| e.payload.as_ref().and_then(|p| log.names().control(p)).unwrap_or_default();
    events.iter().map(|e| Sealed { subject: subject(&e.event), ..e.clone() }).collect()
}

fn headers(event: &Sealed) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", event.id.to_string());
    headers.insert(HEADER_TYPE, event.event_type);
    headers.insert(HEADER_HASH, event.hash.map(|h| hex(&h)).unwrap_or_default());
    headers
}
