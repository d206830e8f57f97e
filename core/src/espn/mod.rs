//! ESPN's scoreboards: asked for with deadlines and bounds, read into our own types.

mod client;
mod parse;
mod wire;

pub use client::{Espn, EspnConfig, EspnError};
pub use parse::{ParseError, Sighting, Slate, View, parse_scoreboard, parse_summary};

/// Where ESPN serves its scoreboards; `ESPN_BASE_URL` says otherwise.
pub const BASE_URL: &str = "https://site.api.espn.com/apis/site/v2/sports";
