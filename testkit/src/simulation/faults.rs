//! What breaks, by plan and by chance.

use super::{Happening, Host, Message, Node, SECOND, Shard, World};

/// One fault, or its end.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Crash(NodeOf),
    Start(NodeOf),
    /// The process is stopped for so long; everything waits for it.
    Pause(NodeOf, i64),
    Resume(NodeOf),
    CutLog(NodeOf),
    MendLog(NodeOf),
    CutRedis(NodeOf),
    MendRedis(NodeOf),
    WallJump(NodeOf, i64),
    ServerDown,
    ServerUp,
    RedisDown,
    RedisUp,
    /// Asked to stop, as by SIGTERM.
    Stop(usize),
    /// It takes up no game any more, or does so again.
    Deaf(usize, bool),
    /// A second process with the same name.
    Twin(usize),
    /// Look at all watchers.
    Look,
}

/// Which node.
#[derive(Clone, Copy, Debug)]
pub enum NodeOf {
    Orchestrator(usize),
    Shard(usize),
}

impl From<NodeOf> for Node {
    fn from(of: NodeOf) -> Self {
        match of {
            NodeOf::Orchestrator(n) => Self::Orchestrator(n),
            NodeOf::Shard(n) => Self::Shard(n),
        }
    }
}

impl World {
    /// Ten to thirty faults in eight minutes, and then peace.
    pub(super) fn plan_faults(&mut self) {
        let count = self.rng.range(6, 26);
        for _ in 0..count {
            let at = self.rng.range(15 * SECOND, self.quiet_us - 60 * SECOND);
            self.plan_one(at);
        }
        let mut at = SECOND;
        while at < self.length_us {
            self.at(at, Happening::Fault(Fault::Look));
            at += SECOND;
        }
    }

    /// Nothing but what a healthy fleet meets in a day: every process stops for a moment about once a minute (50 ms in the middle,
    /// a second at most), the log is away for 30 s every two hours, and each orchestrator is frozen for a minute once.
    pub(super) fn plan_day(&mut self) {
        let shards = (0..self.shards.len()).map(NodeOf::Shard);
        let all: Vec<NodeOf> = shards.chain((0..self.orchestrators.len()).map(NodeOf::Orchestrator)).collect();
        for node in all {
            let mut at = self.rng.range(15 * SECOND, 75 * SECOND);
            while at < self.quiet_us {
                // Half of them below 50 ms, a quarter below 100 ms, and so on.
                let mut span = self.rng.range(1_000, 50_000);
                while span < SECOND && self.rng.chance(5_000) {
                    span *= 2;
                }
                let span = span.min(SECOND);
                self.at(at, Happening::Fault(Fault::Pause(node, span)));
                self.at(at + span, Happening::Fault(Fault::Resume(node)));
                at += self.rng.range(1, 120) * SECOND;
            }
        }
        let mut at = 7_200 * SECOND;
        while at < self.quiet_us - 60 * SECOND {
            self.at(at, Happening::Fault(Fault::ServerDown));
            self.at(at + 30 * SECOND, Happening::Fault(Fault::ServerUp));
            at += 7_200 * SECOND;
        }
        for n in 0..self.orchestrators.len() {
            let at = (i64::try_from(n).unwrap_or(0) + 1) * 3_600 * SECOND;
            self.at(at, Happening::Fault(Fault::Pause(NodeOf::Orchestrator(n), 60 * SECOND)));
            self.at(at + 60 * SECOND, Happening::Fault(Fault::Resume(NodeOf::Orchestrator(n))));
        }
    }

    fn plan_one(&mut self, at: i64) {
        let shards = self.shards.len();
        let shard = self.rng.index(shards);
        let node = if self.rng.chance(3_000) { NodeOf::Orchestrator(self.rng.index(2)) } else { NodeOf::Shard(shard) };
        let short = self.rng.range(50_000, 3 * SECOND);
        let long = self.rng.range(SECOND, 30 * SECOND);
        let span = if self.rng.chance(5_000) { short } else { long };
        let (begin, end) = match self.rng.index(14) {
            0 | 1 => (Fault::Crash(node), Some(Fault::Start(node))),
            2 | 3 => (Fault::Pause(node, span), Some(Fault::Resume(node))),
            4 | 5 => (Fault::CutLog(node), Some(Fault::MendLog(node))),
            6 => (Fault::CutRedis(node), Some(Fault::MendRedis(node))),
            7 => (Fault::WallJump(node, self.rng.range(-3_600 * SECOND, 3_600 * SECOND)), None),
            8 | 9 => (Fault::ServerDown, Some(Fault::ServerUp)),
            10 => (Fault::RedisDown, Some(Fault::RedisUp)),
            11 => (Fault::Stop(shard), Some(Fault::Start(NodeOf::Shard(shard)))),
            12 => (Fault::Deaf(shard, true), Some(Fault::Deaf(shard, false))),
            _ => (Fault::Twin(shard), None),
        };
        let span = if matches!(begin, Fault::Stop(_)) { span + 12 * SECOND } else { span };
        self.at(at, Happening::Fault(begin));
        if let Some(end) = end {
            self.at(at + span, Happening::Fault(end));
        }
    }

    /// It happens.
    pub(super) fn strike(&mut self, fault: Fault) -> Result<(), String> {
        let now = self.now;
        if !matches!(fault, Fault::Look) {
            self.note(&format!("-- {fault:?}"));
        }
        match fault {
            Fault::Crash(of) => {
                self.host(of.into()).alive = false;
                self.host(of.into()).trouble_us = now;
            }
            Fault::Start(of) => self.start(of.into()),
            Fault::Pause(of, span) => {
                let host = self.host(of.into());
                host.paused_until_us = host.paused_until_us.max(now + span);
                host.trouble_us = now;
            }
            Fault::Resume(of) => {
                let host = self.host(of.into());
                if host.alive && host.paused_until_us <= now {
                    host.trouble_us = now;
                    return self.resume(of.into());
                }
            }
            Fault::CutLog(of) => {
                self.host(of.into()).to_log = false;
                self.host(of.into()).trouble_us = now;
            }
            Fault::MendLog(of) => {
                let late = self.rng.range(0, 2 * SECOND);
                let host = self.host(of.into());
                host.to_log = true;
                host.trouble_us = now;
                host.tail_from_us = now + late;
            }
            Fault::CutRedis(of) => self.host(of.into()).to_redis = false,
            Fault::MendRedis(of) => self.host(of.into()).to_redis = true,
            Fault::WallJump(of, by) => {
                let host = self.host(of.into());
                host.wall_offset_us += by;
                host.trouble_us = now;
            }
            Fault::ServerDown => {
                self.server_up = false;
            }
            Fault::ServerUp => {
                self.server_up = true;
                self.server_trouble_us = now;
                for n in 0..self.shards.len() {
                    let late = self.rng.range(0, 2 * SECOND);
                    self.shards[n].0.tail_from_us = now + late;
                }
            }
            Fault::RedisDown => self.redis_up = false,
            Fault::RedisUp => self.redis_up = true,
            Fault::Stop(n) => {
                let life = self.shards[n].0.life;
                self.shards[n].0.trouble_us = now;
                self.at(now, Happening::At { node: Node::Shard(n), life, message: Message::Stop });
            }
            Fault::Deaf(n, is_deaf) => {
                self.shards[n].1.is_deaf = is_deaf;
                self.shards[n].0.trouble_us = now;
            }
            Fault::Twin(n) => self.start_twin(n),
            Fault::Look => return self.check_watchers(),
        }
        Ok(())
    }

    fn start_twin(&mut self, of: usize) {
        let (number, max_games) = (self.shards[of].1.number, self.shards[of].1.max_games);
        self.shards[of].0.trouble_us = self.now;
        let host = Host { life: 1_000 + self.count, ..Host::new(&mut self.rng) };
        let twin = self.shards.len();
        self.shards.push((host, Shard::new(number, 0, max_games)));
        self.start(Node::Shard(twin));
    }
}
