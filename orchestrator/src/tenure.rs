//! The leader's key while it is held. It is renewed by the loop itself: a loop that hangs loses it.

use arbees_core::log::Key;
use arbees_core::time::steady_us;
use tokio::sync::mpsc;

/// How often the key is renewed: three times within its life.
const RENEW_EVERY_US: i64 = 300_000;

/// A held key and its renewals.
#[derive(Debug)]
pub struct Tenure {
    /// As it was renewed last.
    pub key: Key,
    /// When it is to be renewed next, by the steady clock.
    pub renew_at_us: i64,
    renewed: mpsc::Receiver<Option<Key>>,
    renewals: mpsc::Sender<Option<Key>>,
    is_lost: bool,
}

impl Tenure {
    /// A key that was just taken.
    pub fn new(key: Key) -> Self {
        let (renewals, renewed) = mpsc::channel(1);
        Self { key, renew_at_us: steady_us() + RENEW_EVERY_US, renewed, renewals, is_lost: false }
    }

    /// Begins to renew it, if it is time.
    pub fn renew_if_due(&mut self) {
        let now_us = steady_us();
        // One renewal at a time: whoever holds the sender's only place is at it.
        if now_us < self.renew_at_us {
            return;
        }
        self.renew_at_us = now_us + RENEW_EVERY_US;
        if let Ok(place) = self.renewals.clone().try_reserve_owned() {
            let key = self.key.clone();
            tokio::spawn(async move { place.send(key.renewed().await) });
        }
    }

    /// Whether the key is surely held now, with what was heard of its renewals.
    pub fn is_held(&mut self) -> bool {
        while let Ok(renewed) = self.renewed.try_recv() {
            match renewed {
                Some(key) => self.key = key,
                None => self.is_lost = true,
            }
        }
        !self.is_lost && self.key.is_held()
    }
}
