//! An ESPN of our own: made-up games, or recorded bodies played back, with faults on demand.

mod fault;
mod playback;
mod server;
mod sim;

use std::path::PathBuf;
use std::str::FromStr;

use bytes::Bytes;

pub use fault::Fault;
pub use playback::Playback;
pub use server::Feed;
pub use sim::{Sim, SimGame, Turn};

/// What the feed shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Made-up games, for ever.
    Sim,
    /// Recorded bodies below this folder.
    Folder(PathBuf),
    /// No feed of ours: the real ESPN.
    Live,
}

impl FromStr for Source {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match (s, s.strip_prefix("dir:")) {
            ("sim", _) => Ok(Self::Sim),
            ("live", _) => Ok(Self::Live),
            (_, Some(path)) if !path.is_empty() => Ok(Self::Folder(path.into())),
            _ => Err(format!("{s:?} is no feed: allowed are sim, live and dir:PATH")),
        }
    }
}

/// What a source can be asked.
pub trait Show: Send + Sync + 'static {
    /// It begins now: its clock does not run while what it is shown to is built up.
    fn begin(&mut self);
    /// The scoreboard of the league at `path` (`baseball/mlb`) now; none for a league without games.
    fn scoreboard(&self, path: &str) -> Option<Bytes>;
    /// The summary of one event; none when it was never shown.
    fn summary(&self, path: &str, event: &str) -> Option<Bytes>;
}
