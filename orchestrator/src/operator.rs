//! Operators' requests, as JSON over NATS: checked for the token, then decided about by the leader.

use arbees_core::log::Asked;
use arbees_fleet::decide::operator::{Ask, Plan};
use serde::{Deserialize, Serialize};

/// A request on the wire.
#[derive(Deserialize)]
struct Wire {
    token: String,
    #[serde(flatten)]
    ask: Ask,
}

/// An answer on the wire: a plan, or why there is none.
#[derive(Debug, Serialize)]
pub struct Answer {
    #[serde(flatten)]
    pub plan: Option<Plan>,
    pub error: Option<String>,
    pub applied: bool,
}

impl Answer {
    /// Nothing was done, for this reason.
    pub fn refused(error: impl Into<String>) -> Self {
        Self { plan: None, error: Some(error.into()), applied: false }
    }
}

/// What is asked for, if whoever asks may.
pub fn read(asked: &Asked, token: Option<&str>) -> Result<Ask, String> {
    let Some(token) = token else {
        return Err("operator verbs are off: OPERATOR_TOKEN is not set for the orchestrator".to_owned());
    };
    let wire: Wire = serde_json::from_slice(&asked.payload).map_err(|e| format!("the request cannot be read: {e}"))?;
    // Hashes are compared, so that the time it takes tells nothing of the token.
    if blake3::hash(wire.token.as_bytes()) != blake3::hash(token.as_bytes()) {
        return Err("the token is not the orchestrator's OPERATOR_TOKEN".to_owned());
    }
    if wire.ask.operator.trim().is_empty() {
        return Err("a request needs the operator's name".to_owned());
    }
    Ok(wire.ask)
}
