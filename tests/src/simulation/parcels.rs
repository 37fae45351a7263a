//! One end of a UDP flow as an application sees it: sends known parcels, checks that each that comes is one of the other end's, to the byte, and
//! comes once.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use shared::{
    ids::FlowId,
    transfer::{
        schedule::Policy,
        session::{Read, Session, Side},
    },
};

use super::{
    application::{PATTERN_BYTES, content},
    world::other,
};

/// What both ends of a UDP flow send.
#[derive(Clone, Copy, Debug)]
pub struct ParcelPlan {
    /// How many parcels.
    pub count: u32,
    /// The least and the most bytes of one; at least [`NUMBER_BYTES`].
    pub bytes: (usize, usize),
    /// The time from one to the next.
    pub every: Duration,
    /// How they are spread over paths.
    pub policy: Policy,
}

/// One end of a UDP flow.
#[derive(Debug)]
pub struct Correspondent {
    flow: FlowId,
    side: Side,
    plan: ParcelPlan,
    sent: u32,
    send_at: Instant,
    is_over: bool,
    arrived: BTreeSet<u32>,
    is_checked: bool,
}

/// A parcel begins with its number.
pub const NUMBER_BYTES: usize = 4;

impl Correspondent {
    /// An end that has just been opened.
    pub fn new(now: Instant, flow: FlowId, side: Side, plan: ParcelPlan, is_checked: bool) -> Self {
        Self { flow, side, plan, sent: 0, send_at: now, is_over: false, arrived: BTreeSet::new(), is_checked }
    }

    /// Sends what is due.
    pub fn act(&mut self, now: Instant, session: &mut Session) {
        while !self.is_over && self.sent < self.plan.count && self.send_at <= now {
            self.is_over = session.send_parcel(now, self.flow, self.plan.parcel(self.flow, self.side, self.sent)).is_err();
            self.sent += 1;
            self.send_at = now + self.plan.every;
        }
    }

    /// When there is more to send.
    pub fn acts_at(&self) -> Option<Instant> {
        (!self.is_over && self.sent < self.plan.count).then_some(self.send_at)
    }

    /// Takes what arrived.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn receive(&mut self, session: &mut Session) -> Result<(), String> {
        while let Read::Bytes(parcel) = session.read_parcel(self.flow) {
            if !self.is_checked {
                continue;
            }
            let number = parcel.first_chunk().map_or(u32::MAX, |number| u32::from_be_bytes(*number));
            if number >= self.plan.count || parcel != self.plan.parcel(self.flow, other(self.side), number) {
                return Err(format!("{} at {:?}: a parcel of {} bytes that nobody sent", self.flow, self.side, parcel.len()));
            }
            if !self.arrived.insert(number) {
                return Err(format!("{} at {:?}: parcel {number} arrived twice", self.flow, self.side));
            }
        }
        Ok(())
    }

    /// Parcels sent and arrived so far.
    pub fn counts(&self) -> (u32, u32) {
        (self.sent, self.arrived.len() as u32)
    }
}

impl ParcelPlan {
    /// The parcel of this number that `side` sends.
    fn parcel(&self, flow: FlowId, side: Side, number: u32) -> Bytes {
        let (least, most) = self.bytes;
        let len = least + (number as usize).wrapping_mul(SIZES_SPREAD) % (most - least + 1);
        let mut parcel = BytesMut::with_capacity(len);
        parcel.put_u32(number);
        let rest = (len - NUMBER_BYTES).min(PATTERN_BYTES);
        parcel.put_slice(content(flow, side, u64::from(number) * OFFSETS_SPREAD, rest));
        parcel.freeze()
    }
}

/// Primes, so that neighbouring parcels differ in size and bytes.
const SIZES_SPREAD: usize = 7919;
const OFFSETS_SPREAD: u64 = 131;
