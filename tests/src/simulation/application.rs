//! One end of a flow as an application sees it: writes known bytes, checks what it reads to the byte, and relies on events alone.
//!
//! It never polls: what it is not told of it does not do, so that a wake-up that the core forgets shows as a flow that hangs.

use std::{sync::LazyLock, time::Instant};

use shared::{
    ids::FlowId,
    transfer::{
        control::AbortCode,
        session::{Read, Session, Side},
    },
};

use super::script::ApplicationPlan;

/// One end of a flow.
#[derive(Debug)]
pub struct Application {
    flow: FlowId,
    side: Side,
    plan: ApplicationPlan,
    /// What the other end will have written, unless the flow is aborted; `None` takes anything.
    expected_bytes: Option<u64>,
    written: u64,
    read: u64,
    may_write: bool,
    may_read: bool,
    write_at: Instant,
    read_at: Instant,
    reset_at: Option<Instant>,
    has_finished: bool,
    has_ended: bool,
    state: State,
}

/// What became of one end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Not yet done.
    Open,
    /// Both directions came to their end.
    Complete,
    /// Let go of before that, as planned.
    Reset,
    /// Aborted by the session.
    Aborted(AbortCode),
}

impl Application {
    /// An end that has just been opened.
    pub fn new(now: Instant, flow: FlowId, side: Side, plan: ApplicationPlan, expected_bytes: Option<u64>) -> Self {
        Self {
            flow,
            side,
            plan,
            expected_bytes,
            written: 0,
            read: 0,
            may_write: true,
            may_read: true,
            write_at: now,
            read_at: now,
            reset_at: plan.resets_after.map(|after| now + after),
            has_finished: false,
            has_ended: false,
            state: State::Open,
        }
    }

    /// What became of it.
    pub fn state(&self) -> State {
        self.state
    }

    /// The bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// There is something to read.
    pub fn on_readable(&mut self) {
        self.may_read = true;
    }

    /// There is room to write.
    pub fn on_writable(&mut self) {
        self.may_write = true;
    }

    /// Does what can be done now; gives when there is more to do without an event.
    ///
    /// # Errors
    /// What is wrong with the bytes that came.
    pub fn act(&mut self, now: Instant, session: &mut Session) -> Result<Option<Instant>, String> {
        if self.state != State::Open {
            return Ok(None);
        }
        if self.reset_at.is_some_and(|at| at <= now) {
            session.release(self.flow);
            self.state = State::Reset;
            return Ok(None);
        }
        self.read(now, session)?;
        self.write(now, session);
        if self.state == State::Open && self.has_ended && self.has_finished {
            self.state = State::Complete;
        }
        if self.state != State::Open {
            session.release(self.flow);
            return Ok(None);
        }
        let write_at = (self.may_write && !self.has_finished && self.may_begin()).then_some(self.write_at);
        let read_at = (self.may_read && !self.has_ended).then_some(self.read_at);
        Ok([write_at, read_at, self.reset_at].into_iter().flatten().min())
    }

    fn read(&mut self, now: Instant, session: &mut Session) -> Result<(), String> {
        while self.may_read && !self.has_ended && self.read_at <= now && self.state == State::Open {
            match session.read(self.flow, self.plan.read_bytes) {
                Read::Bytes(bytes) => {
                    self.check(&bytes)?;
                    self.read += bytes.len() as u64;
                    self.read_at = now + self.plan.read_pause;
                }
                Read::Blocked => self.may_read = false,
                Read::End => {
                    self.has_ended = true;
                    if self.expected_bytes.is_some_and(|expected| expected != self.read) {
                        return Err(format!(
                            "{} ended at {:?} after {} of {:?} bytes",
                            self.flow, self.side, self.read, self.expected_bytes
                        ));
                    }
                }
                Read::Aborted(code) => self.state = State::Aborted(code),
            }
        }
        Ok(())
    }

    fn write(&mut self, now: Instant, session: &mut Session) {
        if self.has_finished || !self.may_begin() {
            return;
        }
        while self.written < self.plan.bytes && self.may_write && self.write_at <= now && self.state == State::Open {
            let wanted = ((self.plan.bytes - self.written) as usize).min(self.plan.write_bytes).min(PATTERN_BYTES);
            match session.write(self.flow, content(self.flow, self.side, self.written, wanted)) {
                Ok(taken) => {
                    self.written += taken as u64;
                    self.may_write = taken == wanted;
                    self.write_at = now + self.plan.write_pause;
                }
                Err(code) => self.state = State::Aborted(code),
            }
        }
        if self.written == self.plan.bytes && self.state == State::Open {
            session.finish(self.flow);
            self.has_finished = true;
        }
    }

    fn may_begin(&self) -> bool {
        !self.plan.answers || self.has_ended
    }

    fn check(&self, bytes: &[u8]) -> Result<(), String> {
        let Some(expected) = self.expected_bytes else { return Ok(()) };
        let mut at = self.read;
        for part in bytes.chunks(PATTERN_BYTES) {
            if part != content(self.flow, super::world::other(self.side), at, part.len()) {
                return Err(format!("{} at {:?}: wrong bytes behind {at}", self.flow, self.side));
            }
            at += part.len() as u64;
        }
        if bytes.is_empty() || at > expected {
            return Err(format!("{} at {:?}: {} bytes behind {}, of {expected}", self.flow, self.side, bytes.len(), self.read));
        }
        Ok(())
    }
}

/// The bytes at `offset` of what `side` writes into `flow`; `len` is at most [`PATTERN_BYTES`].
pub(super) fn content(flow: FlowId, side: Side, offset: u64, len: usize) -> &'static [u8] {
    let shift = flow.0.wrapping_mul(7919) + if side == Side::Proxy { 0 } else { 4001 };
    let start = ((offset + shift) % PATTERN_BYTES as u64) as usize;
    &PATTERN[start..start + len]
}

/// A prime, so that no chunk or block size is in step with it.
pub(super) const PATTERN_BYTES: usize = 65_521;

/// The pattern twice, so that any slice of its length is in one piece.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let once: Vec<u8> = (0..PATTERN_BYTES)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    [once.clone(), once].concat()
});
