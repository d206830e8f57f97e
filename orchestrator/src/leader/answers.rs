//! Answers to those who ask the leader: operators, and services that start.

use arbees_core::bus::contract;
use arbees_core::log::Asked;
use arbees_core::metrics::counter;
use arbees_core::time::now;

use super::Desk;
use crate::operator::{self, Answer, Request};
use crate::outbox::Errand;

impl Desk<'_> {
    /// Decides about an operator's request.
    pub(super) fn operate(&mut self, asked: Asked) {
        let answer = match operator::read(&asked, self.config.operator_token.as_deref()) {
            Err(error) => Answer::refused(error),
            Ok(Request::Alert { operator, about }) => {
                let (log, me, open) =
                    (self.log.clone(), self.me.clone(), self.open.borrow().clone().unwrap_or_default());
                drop(self.tasks.spawn(async move {
                    let answer = operator::about_alert(&log, &me, &open, operator, about).await;
                    log.answer(&asked, serde_json::to_vec(&answer).unwrap_or_default()).await;
                }));
                return;
            }
            Ok(Request::Fleet(ask)) => match self.fleet.operate(now(), &ask) {
                Err(refused) => {
                    counter!("arbees_verbs_total", "outcome" => "refused").increment(1);
                    Answer::refused(refused.to_string())
                }
                Ok(plan) => {
                    counter!("arbees_verbs_total", "outcome" => "done").increment(1);
                    tracing::info!(verb = ask.verb.name(), operator = ask.operator, dry_run = ask.dry_run, "asked for");
                    Answer { plan: Some(plan), error: None, applied: !ask.dry_run }
                }
            },
        };
        self.answers.push((asked, answer));
    }

    /// Answers operators, whose requests are decided and stored.
    pub(super) fn answer_operators(&mut self) {
        for (asked, answer) in std::mem::take(&mut self.answers) {
            let log = self.log.clone();
            drop(self.tasks.spawn(async move {
                log.answer(&asked, serde_json::to_vec(&answer).unwrap_or_default()).await;
            }));
        }
    }

    /// Answers those who asked what there is, out of what is in the log.
    pub(super) fn answer(&mut self) {
        for monitor_type in std::mem::take(&mut self.asked) {
            let owned = self.fleet.owned().filter_map(|(_, g)| Some((g, g.owner.as_ref()?)));
            let all: Vec<_> = owned.map(|(g, o)| contract::assignment(&g.info, o.shard.as_str(), o.since_us)).collect();
            self.outbox.put(Errand::Say {
                channel: contract::state_response_channel(&monitor_type),
                payload: contract::state_response(&monitor_type, &all),
            });
        }
    }
}
