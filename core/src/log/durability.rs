//! Whether an acknowledgement of the log means "on the disk", as the server's monitoring endpoint tells it; and whether all
//! copies of its streams are current.

use std::time::Duration;

use serde_json::Value;

use super::{ALERTS, CONTROL, GAME_STATES, HEARTBEATS, Log, ReadError};

/// An endpoint that does not answer within this is away.
const DEADLINE: Duration = Duration::from_secs(5);

/// Whether the server whose monitoring is at `url` (`NATS_MONITOR_URL`) writes to the disk before it acknowledges
/// (`sync_interval: always`).
///
/// # Errors
/// When it cannot be asked, or has no JetStream; the text says why.
pub async fn syncs_always(url: &str) -> Result<bool, String> {
    crate::install_tls();
    let client = reqwest::Client::builder().timeout(DEADLINE).build().map_err(|e| crate::exit::whole(&e))?;
    let asked = client.get(format!("{}/jsz?config=true", url.trim_end_matches('/'))).send();
    let answer: Value = match asked.await.and_then(reqwest::Response::error_for_status) {
        Ok(answer) => answer.json().await.map_err(|e| crate::exit::whole(&e))?,
        Err(error) => return Err(crate::exit::whole(&error)),
    };
    let config = answer.get("config").filter(|c| c.is_object()).ok_or("the server tells of no JetStream")?;
    Ok(config["sync_always"].as_bool().unwrap_or(false))
}

impl Log {
    /// The copies of streams that are not current, each as `STREAM on SERVER`; none on a single server.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn copies_behind(&self) -> Result<Vec<String>, ReadError> {
        let mut behind = Vec::new();
        for base in [CONTROL, HEARTBEATS, GAME_STATES, ALERTS] {
            let stream = self.names.stream(base);
            let info = self.api(&format!("STREAM.INFO.{stream}"), &serde_json::json!({})).await?;
            let copies = info["cluster"]["replicas"].as_array().into_iter().flatten();
            let is_current = |c: &&Value| c["current"] == true && c["offline"] != true;
            let named = |c: &Value| format!("{stream} on {}", c["name"].as_str().unwrap_or("a server"));
            behind.extend(copies.filter(|c| !is_current(c)).map(named));
        }
        Ok(behind)
    }
}
