//! What carries messages: requests to the log and their answers, tails, and words on Redis. Here they are late, lost or
//! doubled.

use arbees_proto::v1;

use super::server::Beat;
use super::shard::Shard;
use super::{Answer, Happening, Host, Message, Node, Request, SECOND, World};

impl World {
    /// Sends `request` to the log; [`Message::NoAnswer`] tells when nothing came back.
    pub(super) fn ask(&mut self, node: Node, request: Request) -> u64 {
        self.requests += 1;
        let (number, now) = (self.requests, self.now);
        let host = self.host(node);
        host.waiting.insert(number, ());
        let (life, reaches) = (host.life, host.to_log);
        let sent_us = host.now(now).steady_us;
        if reaches && !self.loses() {
            let delay = self.latency();
            self.at(now + delay, Happening::Server { from: node, life, number, sent_us, request: Box::new(request) });
        }
        self.at(now + 2 * SECOND, Happening::At { node, life, message: Message::NoAnswer(number) });
        number
    }

    /// Whether a message to or from the log is lost.
    const fn loses(&mut self) -> bool {
        self.rng.chance(20) && self.now < self.quiet_us
    }

    fn latency(&mut self) -> i64 {
        if self.rng.chance(50) { self.rng.range(20_000, 250_000) } else { self.rng.range(200, 3_000) }
    }

    pub(super) fn serve(
        &mut self,
        from: Node,
        life: u64,
        number: u64,
        sent_us: i64,
        request: Request,
    ) -> Result<(), String> {
        if !self.server_up {
            return Ok(());
        }
        let now = self.now;
        let answer = match request {
            Request::Append { expected, events } => {
                let written = self.server.append(expected, &events);
                if written.is_ok() {
                    self.stored(&events)?;
                }
                Answer::Appended(written)
            }
            Request::ReadIds { from, count } => Answer::Ids(self.server.ids(from, count)),
            Request::Beat { number, expected, event } => {
                let (name, process) = self.name(from);
                let written = self.server.beat(&name, Some(expected), Some((process, number)), event);
                self.pump_all();
                Answer::Beaten { number, written }
            }
            Request::PlainBeat { event } => {
                let (name, process) = self.name(from);
                let written = self.server.beat(&name, None, Some((process, 0)), event);
                self.pump_all();
                Answer::Beaten { number: 0, written }
            }
            Request::LastBeat { shard, judging } => {
                let last = self.server.last_beat(&shard).map(|b| Beat::clone(b));
                match judging {
                    Some(heartbeat) => Answer::Judged { shard, heartbeat, last },
                    None => Answer::Looked { asked_us: sent_us, last },
                }
            }
            Request::Fence { shard, heartbeat, expected } => {
                let fence = v1::Fence { heartbeat_sequence: heartbeat, ..v1::Fence::default() };
                let payload = Some(arbees_proto::Payload::Fence(fence));
                let event = v1::Event { payload, ..v1::Event::default() };
                let written = self.server.beat(&shard, Some(expected), None, event);
                self.pump_all();
                Answer::Fenced { shard, heartbeat, written }
            }
            Request::Recover => {
                let Node::Shard(n) = from else { return Ok(()) };
                let set = self.server.recover(&self.shards[n].1.id);
                let (control, beats) = (self.server.control.len(), self.server.beats.len());
                let host = self.host(from);
                (host.next_control, host.next_beat) = (control, beats);
                Answer::Recovered { asked_us: sent_us, set }
            }
            Request::Key { revision } => {
                let (_, holder) = self.name(from);
                Answer::Key { sent_us, written: self.server.put_key(now, &holder, revision) }
            }
            Request::Probe { shard } => {
                let there = |(h, s): &&(Host, Shard)| s.id.as_str() == shard && h.alive && h.to_log;
                let Some((host, _)) = self.shards.iter().find(there) else {
                    return self.reply(from, life, number, Answer::Probed { shard, is_there: false });
                };
                if host.paused_until_us > now {
                    return Ok(());
                }
                Answer::Probed { shard, is_there: true }
            }
        };
        self.reply(from, life, number, answer)
    }

    pub(super) fn reply(&mut self, to: Node, life: u64, number: u64, answer: Answer) -> Result<(), String> {
        let now = self.now;
        let reaches = self.host(to).to_log && self.host(to).waiting.remove(&number).is_some();
        if reaches && !self.loses() {
            let delay = self.latency();
            self.at(now + delay, Happening::At { node: to, life, message: Message::Answer(Box::new(answer)) });
        } else {
            self.host(to).waiting.insert(number, ());
        }
        Ok(())
    }

    /// Name on the heartbeat subjects, and process.
    pub(super) fn name(&self, node: Node) -> (String, String) {
        match node {
            Node::Orchestrator(n) => {
                let (host, _) = &self.orchestrators[n];
                (format!("orchestrator-{n}"), format!("o{n}-{}", host.life))
            }
            Node::Shard(n) => {
                let (_, shard) = &self.shards[n];
                (shard.id.to_string(), shard.process.clone())
            }
        }
    }

    /// New messages go to everybody who tails, in order.
    fn pump_all(&mut self) {
        for n in 0..self.orchestrators.len() {
            self.pump(Node::Orchestrator(n));
        }
    }

    pub(super) fn pump_control(&mut self) {
        self.pump_all();
        for n in 0..self.shards.len() {
            self.pump(Node::Shard(n));
        }
    }

    pub(super) fn pump(&mut self, node: Node) {
        let now = self.now;
        let (control_end, beats_end) = (self.server.control.len(), self.server.beats.len());
        let is_up = self.server_up;
        let host = self.host(node);
        if !host.alive || !host.to_log || now < host.tail_from_us || !is_up {
            return;
        }
        let life = host.life;
        let (control, beat) = (host.next_control, host.next_beat);
        (self.host(node).next_control, self.host(node).next_beat) = (control_end, beats_end);
        let delay = 300 + self.rng.range(0, 400);
        for index in control..control_end {
            let entry = self.server.control[index].0.clone();
            self.at(now + delay, Happening::At { node, life, message: Message::Control(entry) });
        }
        if let Node::Orchestrator(_) = node {
            for index in beat..beats_end {
                let beat = self.server.beats[index].clone();
                self.at(now + delay, Happening::At { node, life, message: Message::Heard(beat) });
            }
        }
        // Orchestrators hold no lease.
        if let Node::Shard(_) = node {
            self.at(now + delay, Happening::At { node, life, message: Message::AtEnd });
        }
    }

    /// A word on Redis: lost, repeated, late.
    pub(super) fn tell(&mut self, from: Node, word: &Message) {
        if !self.redis_up || !self.host(from).to_redis {
            return;
        }
        let shards = (0..self.shards.len()).map(Node::Shard);
        let all: Vec<Node> = shards.chain((0..self.orchestrators.len()).map(Node::Orchestrator)).collect();
        for node in all {
            let copies = if self.rng.chance(200) { 0 } else { 1 + u32::from(self.rng.chance(100)) };
            let (life, reaches) = (self.host(node).life, self.host(node).to_redis);
            for _ in 0..copies {
                let delay = if self.rng.chance(100) { self.rng.range(0, 300_000) } else { self.rng.range(100, 2_000) };
                if reaches {
                    self.at(self.now + delay, Happening::At { node, life, message: word.clone() });
                }
            }
        }
    }
}
