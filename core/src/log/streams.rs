//! The streams: created when absent, checked when there. Nothing here or elsewhere ever deletes one.

use serde_json::{Value, json};

use super::api::{ApiError, NO_STREAM};
use super::{Log, ReadError};

/// Every decision; kept for ever.
pub const CONTROL: &str = "CONTROL";
/// Who is alive.
pub const HEARTBEATS: &str = "HEARTBEATS";
/// Every alert; kept for ever.
pub const ALERTS: &str = "ALERTS";
/// What shards saw of their games.
pub const GAME_STATES: &str = "GAME_STATES";

/// JetStream's codes for a cluster that has not formed yet, or is electing.
const NO_PEERS: u64 = 10_005;
const TEMPORARILY_UNAVAILABLE: u64 = 10_008;
const CLUSTER_UNAVAILABLE: u64 = 10_009;

const SECOND_NS: u64 = 1_000_000_000;
const GIB: u64 = 1 << 30;

/// Why the streams are not as they must be.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    #[error("stream {stream} differs from what is needed:\n{}", differences.join("\n"))]
    Differs { stream: String, differences: Vec<String> },
    #[error("stream {stream} could not be created or read")]
    Api {
        stream: String,
        #[source]
        source: ApiError,
    },
}

impl EnsureError {
    /// Whether waiting may mend it.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Api { source: ApiError::Unknown(_), .. } => true,
            Self::Api { source: ApiError::Refused { code, .. }, .. } => {
                matches!(*code, NO_PEERS | CLUSTER_UNAVAILABLE | TEMPORARILY_UNAVAILABLE)
            }
            Self::Differs { .. } => false,
        }
    }
}

impl Log {
    /// Creates the streams that are absent and checks those that are there.
    ///
    /// # Errors
    /// With every difference of the first stream that differs.
    pub async fn ensure_streams(&self) -> Result<(), EnsureError> {
        for (base, wanted) in self.wanted() {
            let stream = self.names.stream(base);
            self.ensure(&stream, wanted).await?;
        }
        Ok(())
    }

    async fn ensure(&self, stream: &str, wanted: Value) -> Result<(), EnsureError> {
        let failed = |source| EnsureError::Api { stream: stream.to_owned(), source };
        let info = match self.api(&format!("STREAM.INFO.{stream}"), &json!({})).await {
            Err(error) if error.has_code(NO_STREAM) => {
                let mut config = wanted.clone();
                config["name"] = json!(stream);
                config["num_replicas"] = json!(self.replicas);
                let created = self.api(&format!("STREAM.CREATE.{stream}"), &config).await.map_err(failed)?;
                tracing::info!(stream, "stream created");
                created
            }
            other => other.map_err(failed)?,
        };
        let differences = differences(&wanted, &info["config"]);
        if differences.is_empty() {
            return Ok(());
        }
        Err(EnsureError::Differs { stream: stream.to_owned(), differences })
    }

    /// What each stream must be. What is not named here is the deployment's affair.
    fn wanted(&self) -> [(&'static str, Value); 4] {
        let names = &self.names;
        let kept_for_ever = |subject: String| {
            json!({
                "subjects": [subject], "storage": "file", "retention": "limits", "discard": "new",
                "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1,
                "deny_delete": true, "deny_purge": true,
            })
        };
        let bounded = |subject: String, max_age_s: u64, max_bytes: u64| {
            json!({
                "subjects": [subject], "storage": "file", "retention": "limits", "discard": "old",
                "max_bytes": max_bytes, "max_age": max_age_s * SECOND_NS,
            })
        };
        let mut control = kept_for_ever(names.control_all());
        control["allow_atomic"] = json!(true);
        [
            (CONTROL, control),
            (HEARTBEATS, bounded(names.heartbeat_all(), 48 * 3600, GIB)),
            (ALERTS, kept_for_ever(names.alert_all())),
            (GAME_STATES, bounded(names.game_state_all(), 30 * 24 * 3600, 4 * GIB)),
        ]
    }

    /// First and last sequence of a stream.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn bounds(&self, base: &str) -> Result<(u64, u64), ReadError> {
        let info = self.api(&format!("STREAM.INFO.{}", self.names.stream(base)), &json!({})).await?;
        let number = |name: &str| info["state"][name].as_u64().unwrap_or(0);
        Ok((number("first_seq"), number("last_seq")))
    }
}

fn differences(wanted: &Value, found: &Value) -> Vec<String> {
    let fields = wanted.as_object().into_iter().flatten();
    fields
        .filter(|(name, want)| {
            let have = found.get(name.as_str());
            // The server leaves out what is false or nought.
            have != Some(want) && !(have.is_none() && (**want == json!(false) || **want == json!(0)))
        })
        .map(|(name, want)| format!("  {name}: needed {want}, found {}", found.get(name).unwrap_or(&Value::Null)))
        .collect()
}
