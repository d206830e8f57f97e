//! A shard of the old fleet: JSON over Redis, bare ids, no idea of logs or leases.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbees_core::bus::Bus;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Runs until dropped.
pub struct OldShard {
    /// All it was told, in order.
    pub commands: Arc<Mutex<Vec<Value>>>,
    /// Bare ids of the games it watches.
    pub games: Arc<Mutex<BTreeSet<String>>>,
    /// It loses whatever it is told.
    pub is_deaf: Arc<AtomicBool>,
    tasks: [JoinHandle<()>; 2],
}

impl OldShard {
    /// One with room for five games.
    pub fn start(bus: &Bus, name: &'static str) -> Self {
        Self::watching(bus, name, 5, BTreeSet::new())
    }

    /// One that watches `games` already.
    pub fn watching(bus: &Bus, name: &'static str, max_games: usize, games: BTreeSet<String>) -> Self {
        let (commands, games) = (Arc::<Mutex<Vec<Value>>>::default(), Arc::new(Mutex::new(games)));
        let is_deaf = Arc::new(AtomicBool::new(false));
        let mut heard = bus.subscribe(&[&format!("shard:{name}:command")], &[]);
        let (all, mine, deaf) = (commands.clone(), games.clone(), is_deaf.clone());
        let obeying = tokio::spawn(async move {
            while let Some(message) = heard.next().await {
                let command: Value = serde_json::from_slice(&message.payload).unwrap();
                let game = command["game_id"].as_str().unwrap().to_owned();
                if !deaf.load(Ordering::Relaxed) {
                    match command["type"].as_str() {
                        Some("add_game") => drop(mine.lock().unwrap().insert(game)),
                        Some("remove_game") => drop(mine.lock().unwrap().remove(&game)),
                        other => panic!("unknown command {other:?}"),
                    }
                }
                all.lock().unwrap().push(command);
            }
        });
        let (bus, mine) = (bus.clone(), games.clone());
        let beating = tokio::spawn(async move {
            loop {
                let games: Vec<String> = mine.lock().unwrap().iter().cloned().collect();
                let beat = json!({
                    "shard_id": name, "shard_type": "sports", "process_id": 4711, "started_at": "2026-01-28T10:00:00+00:00",
                    "timestamp": chrono::Utc::now().to_rfc3339(), "version": "old", "game_count": games.len(), "games": games,
                    "max_games": max_games, "status": "healthy", "checks": { "redis_ok": true, "espn_api_ok": true },
                });
                // While Redis is away it beats for nobody.
                let _ = bus.publish(&format!("shard:{name}:heartbeat"), &beat.to_string()).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        Self { commands, games, is_deaf, tasks: [obeying, beating] }
    }

    /// How many games it watches.
    pub fn count(&self) -> usize {
        self.games.lock().unwrap().len()
    }

    /// How often it was told to do `what`.
    pub fn told(&self, what: &str) -> usize {
        self.commands.lock().unwrap().iter().filter(|c| c["type"] == what).count()
    }
}

impl Drop for OldShard {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
