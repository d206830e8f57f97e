//! A tail: a stream from a sequence on, for ever, without gap or repeat over reconnects and server restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Log;
use super::push::{Push, Spec, Start};
use super::stored::Stored;
use crate::retry::Policy;

/// Messages that may wait for the reader. When it is full, flow control makes the server wait.
const CAPACITY: usize = 4_096;

/// A running tail. Dropping it ends it.
#[derive(Debug)]
pub struct Tail {
    messages: mpsc::Receiver<Stored>,
    at_end: watch::Receiver<Option<i64>>,
    is_lost: Arc<AtomicBool>,
    _stop: tokio_util::sync::DropGuard,
}

impl Tail {
    /// The next message. Safe to cancel. None only when the tail was ended, or the stream has lost its own: [`Self::is_lost`].
    pub async fn next(&mut self) -> Option<Stored> {
        self.messages.recv().await
    }

    /// Whether it has ended because the stream ends before what was already read: it was restored, or lost its end in a power cut.
    /// What was read is no measure any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// The next message if one is there.
    pub fn ready(&mut self) -> Option<Stored> {
        self.messages.try_recv().ok()
    }
}

impl Tail {
    /// The next message, or none when the tail newly stood at the stream's end: then with when that was. Safe to cancel.
    pub async fn next_or_end(&mut self) -> Option<Result<Stored, i64>> {
        tokio::select! {
            biased;
            stored = self.messages.recv() => stored.map(Ok),
            Ok(()) = self.at_end.changed() => {
                let at_us = *self.at_end.borrow_and_update();
                Some(Err(at_us.unwrap_or(i64::MIN)))
            }
        }
    }
}

impl Log {
    /// Tails `base` from sequence `from` on, only what `filters` match (none: all).
    #[must_use]
    pub fn tail(&self, base: &str, filters: Vec<String>, from: u64) -> Tail {
        let (sender, messages) = mpsc::channel(CAPACITY);
        let (proof, at_end) = watch::channel(None);
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let spec = Spec { stream: self.names.stream(base), filters, start: Start::Sequence(from) };
        let (log, base, is_lost) = (self.clone(), base.to_owned(), Arc::<AtomicBool>::default());
        let lost = is_lost.clone();
        tokio::spawn(async move {
            let following = follow(&log, &base, spec, from.max(1), &sender, &proof);
            if stop.run_until_cancelled(following).await == Some(Ended::Lost) {
                lost.store(true, Ordering::Relaxed);
            }
            drop(sender);
        });
        Tail { messages, at_end, is_lost, _stop: guard }
    }
}

/// Why a tail ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// Nobody listens.
    Unheard,
    /// The stream ends before where this tail stood.
    Lost,
}

/// Opens one consumer after another, each from where the one before stood, until nobody listens.
async fn follow(
    log: &Log,
    base: &str,
    mut spec: Spec,
    mut next: u64,
    sender: &mpsc::Sender<Stored>,
    at_end: &watch::Sender<Option<i64>>,
) -> Ended {
    let mut delays = Policy::patient().delays();
    let mut is_away = false;
    loop {
        spec.start = Start::Sequence(next);
        let why = match Push::open(log, &spec).await {
            Err(error) => error.to_string(),
            Ok(_) if is_beyond(log, base, next).await => return lost(&spec.stream, next),
            Ok(mut push) => {
                if is_away {
                    tracing::info!(stream = spec.stream, from = next, "tail is back");
                    is_away = false;
                }
                delays.reset();
                loop {
                    match push.step().await {
                        Ok(stored) => {
                            if let Some(stored) = stored {
                                next = stored.sequence + 1;
                                if sender.send(stored).await.is_err() {
                                    push.close().await;
                                    return Ended::Unheard;
                                }
                            }
                            // Told after the message: whoever hears of the end finds all before it.
                            if push.at_end_us.is_some() {
                                at_end.send_replace(push.at_end_us);
                            }
                        }
                        Err(broken) => break broken.to_string(),
                    }
                }
            }
        };
        ::metrics::counter!("arbees_log_reconnects_total", "stream" => base.to_owned()).increment(1);
        if !is_away {
            tracing::warn!(stream = spec.stream, next, why, "tail broke, opening it again");
            is_away = true;
        }
        tokio::time::sleep(delays.next_delay()).await;
        if is_beyond(log, base, next).await {
            return lost(&spec.stream, next);
        }
    }
}

/// Whether the stream ends before `next` could come. A consumer that begins there would wait for ever, and then give out what is
/// new under old numbers.
async fn is_beyond(log: &Log, base: &str, next: u64) -> bool {
    log.bounds(base).await.is_ok_and(|(_, end)| end + 1 < next)
}

fn lost(stream: &str, next: u64) -> Ended {
    tracing::error!(stream, next, "the stream has lost its tail");
    Ended::Lost
}
