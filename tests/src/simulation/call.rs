//! What a call hears over a set of lines: a parcel every 20 ms towards `reconst`, beside an upload or alone.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use shared::{
    ids::{FlowId, PathId},
    transfer::{
        schedule::Policy,
        session::{Event, Limits, Read, Side},
    },
};

use super::world::{Fault, Occurrence, SIDES, World};
use crate::{line::Conditions, scene::SceneLine};

/// A call to be measured.
#[derive(Clone, Debug)]
pub struct CallTrial {
    /// The lines.
    pub lines: Vec<SceneLine>,
    /// How its parcels are spread.
    pub policy: Policy,
    /// The bytes of a parcel, and the time from one to the next.
    pub parcel_bytes: usize,
    /// See `parcel_bytes`.
    pub every: Duration,
    /// Whether an upload takes all that there is besides.
    pub has_bulk: bool,
    /// The line that falls silent in the middle.
    pub kill: Option<usize>,
    /// How long it lasts.
    pub lasts: Duration,
    /// What the lines' randomness follows from.
    pub seed: u64,
}

/// What was heard.
#[derive(Clone, Debug, Default)]
pub struct CallOutcome {
    /// Parcels sent.
    pub sent: u32,
    /// The one-way delays of those that arrived, ascending.
    pub delays: Vec<Duration>,
    /// The longest time in which none arrived.
    pub longest_gap: Duration,
    /// Bytes that the upload brought across.
    pub bulk_bytes: u64,
}

impl CallTrial {
    /// A voice call of 64 kbit/s for a minute.
    pub fn new(lines: Vec<SceneLine>, policy: Policy) -> Self {
        let every = Duration::from_millis(20);
        Self { lines, policy, parcel_bytes: 172, every, has_bulk: false, kill: None, lasts: Duration::from_secs(60), seed: 1 }
    }

    /// Measures it.
    ///
    /// # Errors
    /// If a core breaks its contract.
    pub fn run(&self) -> Result<CallOutcome, Fault> {
        let mut world = World::new(Policy::Adaptive, Limits::default(), Limits::default());
        for (place, line) in self.lines.iter().enumerate() {
            let number = world.add_line(line.up, line.down, self.seed.wrapping_mul(31).wrapping_add(place as u64));
            SIDES.into_iter().for_each(|side| world.join(side, PathId(place as u32), number, 1));
        }
        let (call, bulk) = (open(&mut world), open(&mut world));
        world.end(Side::Proxy).carry_parcels(call, self.policy);
        let mut outcome = CallOutcome::default();
        let mut next_at = world.now() + WARM_UP;
        let (end, mut kill_at) = (next_at + self.lasts, self.kill.map(|_| next_at + self.lasts / 2));
        let mut heard_at: Option<Instant> = None;
        if self.has_bulk {
            fill(&mut world, bulk);
        }
        while world.now() < end {
            if let (Some(line), Some(at)) = (self.kill, kill_at)
                && at <= world.now()
            {
                kill_at = None;
                SIDES.into_iter().for_each(|side| {
                    let conditions = world.conditions(line, side);
                    world.set_conditions(line, side, Conditions { is_out: true, ..conditions });
                });
            }
            if next_at <= world.now() {
                let (sent_at, now) = (world.elapsed(), world.now());
                let _ = world.end(Side::Proxy).send_parcel(now, call, parcel(sent_at, self.parcel_bytes));
                outcome.sent += 1;
                next_at += self.every;
            }
            let until = kill_at.map_or(next_at, |at| at.min(next_at)).min(end);
            match world.advance(until)? {
                Occurrence::Event(Side::Reconst, Event::Parcel(flow)) => {
                    while let Read::Bytes(parcel) = world.end(Side::Reconst).read_parcel(flow) {
                        let sent_at = parcel.first_chunk().map_or(0, |nanos| u64::from_be_bytes(*nanos));
                        outcome.delays.push(world.elapsed() - Duration::from_nanos(sent_at));
                        let now = world.now();
                        outcome.longest_gap = outcome.longest_gap.max(heard_at.map_or(Duration::ZERO, |at| now - at));
                        heard_at = Some(now);
                    }
                }
                Occurrence::Event(Side::Reconst, Event::Readable(flow)) => {
                    while let Read::Bytes(bytes) = world.end(Side::Reconst).read(flow, usize::MAX) {
                        outcome.bulk_bytes += bytes.len() as u64;
                    }
                }
                Occurrence::Event(Side::Proxy, Event::Writable(flow)) if flow == bulk => fill(&mut world, bulk),
                _ => {}
            }
        }
        outcome.delays.sort();
        Ok(outcome)
    }
}

impl CallOutcome {
    /// The part of the parcels that did not arrive.
    pub fn lost(&self) -> f64 {
        1.0 - self.delays.len() as f64 / f64::from(self.sent.max(1))
    }

    /// The delay that this part of those that arrived did not exceed.
    pub fn delay(&self, quantile: f64) -> Duration {
        let place = (self.delays.len() as f64 * quantile) as usize;
        self.delays.get(place.min(self.delays.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

fn open(world: &mut World) -> FlowId {
    world.end(Side::Proxy).open().expect("far below the limit")
}

fn fill(world: &mut World, bulk: FlowId) {
    while let Ok(1..) = world.end(Side::Proxy).write(bulk, &[0; 16 * 1024]) {}
}

fn parcel(sent_at: Duration, bytes: usize) -> Bytes {
    let mut parcel = BytesMut::with_capacity(bytes);
    parcel.put_u64(sent_at.as_nanos() as u64);
    parcel.resize(bytes.max(parcel.len()), 0);
    parcel.freeze()
}

/// Until the lines are known.
const WARM_UP: Duration = Duration::from_secs(3);
