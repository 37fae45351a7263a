//! Leaves the owner's own traffic room on a line that others use too.
//!
//! Enters: a line's login, over which its queues are probed, and what the line carries. Leaves: lower rates of its lanes while a queue
//! stands that isn't the relay's. Always holds: an idle line is not probed, and one whose `reconst` does not echo is never limited.
//! When to give way and how far is decided in [`shared::share::yielding`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    share::yielding::{STEP, Yielding},
    units::Rate,
};
use tokio::sync::watch;

use crate::{
    client::Common,
    lane::Lane,
    probe::{Queues, pause},
    share::ShareConfig,
};

/// Watches over one line until the future is dropped, and lends the part `least` of it in any case; `logins` gives the login that stands.
pub(crate) async fn run(common: Arc<Common>, config: ShareConfig, least: f64, mut logins: watch::Receiver<Option<quinn::Connection>>) {
    loop {
        let login = logins.borrow_and_update().clone();
        let Some(login) = login else {
            if logins.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        };
        Watch::new(&common, &config, least).over(&login).await;
        // Without probes nothing is known.
        set_limit(&common.share.up, config.up, None);
        set_limit(&common.share.down, config.down, None);
        tokio::select! {
            _ = logins.changed() => (),
            () = tokio::time::sleep(IDLE_LOOK) => (),
        }
    }
}

struct Watch<'a> {
    common: &'a Common,
    config: &'a ShareConfig,
    queues: Queues,
    up: Yielding,
    down: Yielding,
    carried: Carried,
    /// Bytes per second in the last step, both ways.
    rate: f64,
    stepped: Instant,
    probe_at: Instant,
}

/// The bytes that a line has carried.
#[derive(Clone, Copy)]
struct Carried {
    up: u64,
    down: u64,
}

impl<'a> Watch<'a> {
    fn new(common: &'a Common, config: &'a ShareConfig, least: f64) -> Self {
        let (now, carried) = (Instant::now(), carried(common));
        Self {
            common,
            config,
            queues: Queues::new(now),
            up: Yielding::new(now, carried.up, least),
            down: Yielding::new(now, carried.down, least),
            carried,
            rate: 0.0,
            stepped: now,
            probe_at: now,
        }
    }

    /// Goes on until the login ends.
    async fn over(mut self, login: &quinn::Connection) {
        loop {
            let now = Instant::now();
            self.step(now);
            if self.is_used() && now >= self.probe_at {
                self.probe_at = now + pause(self.rate);
                let _ = login.send_datagram(self.queues.probe(now));
            }
            let next = if self.is_used() { self.probe_at.min(self.stepped + STEP) } else { now + IDLE_LOOK };
            tokio::select! {
                datagram = login.read_datagram() => {
                    let Ok(datagram) = datagram else { return };
                    let now = Instant::now();
                    if let Some(met) = self.queues.on_datagram(now, &datagram) {
                        self.up.on_probe(now, met.up);
                        self.down.on_probe(now, met.down);
                    }
                }
                () = tokio::time::sleep_until(next.into()) => (),
            }
        }
    }

    /// Whether the line carries enough for its queues to be of interest.
    fn is_used(&self) -> bool {
        self.rate > USED || self.common.share.gives_way()
    }

    fn step(&mut self, now: Instant) {
        let elapsed = now.duration_since(self.stepped);
        if elapsed < STEP {
            return;
        }
        let carried = carried(self.common);
        let bytes = carried.up + carried.down - self.carried.up - self.carried.down;
        (self.rate, self.carried, self.stepped) = (bytes as f64 / elapsed.as_secs_f64(), carried, now);
        let limit = self.up.limit(now, carried.up);
        set_limit(&self.common.share.up, self.config.up, limit);
        let limit = self.down.limit(now, carried.down);
        set_limit(&self.common.share.down, self.config.down, limit);
    }
}

/// Has a lane keep to the lower of what its owner has set and what is left to it for now.
fn set_limit(lane: &Lane, set: Option<Rate>, limit: Option<Rate>) {
    let is_lower = |limit: &Rate| set.is_none_or(|set| *limit < set);
    let limit = limit.filter(is_lower);
    lane.set_rate(Instant::now(), limit.or(set), limit.is_some());
}

fn carried(common: &Common) -> Carried {
    let status = common.totals.status();
    Carried { up: status.up.bytes, down: status.down.bytes }
}

/// Below this many bytes per second a line is not in use: keep-alives come to less.
const USED: f64 = 4_000.0;

/// How often an idle line is looked at.
const IDLE_LOOK: Duration = Duration::from_secs(1);
