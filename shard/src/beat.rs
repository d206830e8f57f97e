//! The shard's heartbeat on Redis, for all who read that; it is judged by the one on the log.

use std::time::Duration;

use arbees_core::bus::{Bus, contract};
use arbees_core::time::now_us;
use arbees_proto::v1;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// How often Redis is looked at, between beats.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// Beats every so often, and tells the loop whether Redis is there. Begins when there is something to say.
pub async fn run(bus: Bus, every: Duration, mut beat: watch::Receiver<v1::Heartbeat>, is_there: watch::Sender<bool>) {
    if beat.wait_for(|b| b.service.is_some()).await.is_err() {
        return;
    }
    let mut ticks = tokio::time::interval(every.min(CHECK_EVERY));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut since_beat = every;
    loop {
        ticks.tick().await;
        since_beat += ticks.period();
        let told = if since_beat >= every {
            since_beat = Duration::ZERO;
            let beat = beat.borrow().clone();
            say(&bus, &beat).await
        } else {
            bus.health_check_result().await.is_ok()
        };
        is_there.send_if_modified(|was| std::mem::replace(was, told) != told);
    }
}

/// Beats once; false when Redis is away.
pub async fn say(bus: &Bus, beat: &v1::Heartbeat) -> bool {
    let instance = beat.service.as_ref().map(|s| s.instance.clone()).unwrap_or_default();
    let payload = contract::shard_beat(beat, now_us()).to_string();
    bus.publish(&contract::heartbeat_channel(&instance), &payload).await.is_ok()
}
