//! The bare client: nothing of ours between.

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::{Client, HeaderMap, jetstream};
use bytes::Bytes;
use futures::StreamExt as _;

/// A conditional atomic batch, sent and acknowledged. `headers` are those that ours carry, too.
pub async fn batch(client: &Client, id: &str, expected: u64, messages: &[(String, HeaderMap, Bytes)]) -> Result<()> {
    for (index, (subject, headers, payload)) in messages.iter().enumerate() {
        let mut headers = headers.clone();
        headers.insert("Nats-Batch-Id", id);
        headers.insert("Nats-Batch-Sequence", (index + 1).to_string());
        if index == 0 {
            headers.insert("Nats-Expected-Last-Sequence", expected.to_string());
        }
        if index + 1 == messages.len() {
            headers.insert("Nats-Batch-Commit", "1");
            let ack = client.request_with_headers(subject.clone(), headers, payload.clone()).await?;
            if !ack.payload.starts_with(b"{\"stream\"") {
                bail!("refused: {}", String::from_utf8_lossy(&ack.payload));
            }
        } else {
            client.publish_with_headers(subject.clone(), headers, payload.clone()).await?;
        }
    }
    Ok(())
}

/// Reads `stream` by the client's own ordered push consumer, without looking at anything; how many messages.
pub async fn ordered(client: &Client, stream: &str, filter: &str, policy: DeliverPolicy) -> Result<u64> {
    let context = jetstream::new(client.clone());
    let stream = context.get_stream(stream).await?;
    let config = push::OrderedConfig {
        deliver_subject: client.new_inbox(),
        filter_subject: filter.to_owned(),
        deliver_policy: policy,
        ..push::OrderedConfig::default()
    };
    let mut consumer = stream.create_consumer(config).await?;
    if consumer.info().await?.num_pending == 0 && consumer.info().await?.delivered.consumer_sequence == 0 {
        return Ok(0);
    }
    let mut messages = consumer.messages().await?;
    let mut count = 0;
    loop {
        let message = messages.next().await.context("the stream ended")??;
        count += 1;
        if message.info().map_err(anyhow::Error::msg)?.pending == 0 {
            return Ok(count);
        }
    }
}

/// Reads `stream` from one sequence to another, without looking at anything.
pub async fn range(client: &Client, stream: &str, from: u64, to: u64) -> Result<()> {
    let context = jetstream::new(client.clone());
    let stream = context.get_stream(stream).await?;
    let config = push::OrderedConfig {
        deliver_subject: client.new_inbox(),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
        ..push::OrderedConfig::default()
    };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    loop {
        let message = messages.next().await.context("the stream ended")??;
        if message.info().map_err(anyhow::Error::msg)?.stream_sequence >= to {
            return Ok(());
        }
    }
}
