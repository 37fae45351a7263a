//! The session's own messages: the bytes of flow 0.
//!
//! ```text
//! message = length (varint, of what follows), type (1 byte), fields
//! 0x01 credit: flow, limit      the flow's sender may send up to this offset
//! 0x02 abort:  flow, code       the flow is over in both directions; what is under way counts for nothing
//! 0x10 roster: lines            the relays' lines of the proxy's LAN, as `community::listed` writes them; replaces what was told before
//! 0x11 leave:  path, why (1)    nothing more goes out on the path, and nothing should: what is under way still counts
//! 0x12 full:   path             the path's line has held the sender of this message back for the last seconds
//! 0x13 policy: policy (1)       how a proxy wants `reconst` to spread chunks: 1 adaptive, 2 wrr, 3 rr, 4 redundant
//! 0x14 quotas: quotas           what the proxy's user may use and has, as `community::quota::told` writes it; replaces what was told before
//! 0x15 fair:   path, rate       the rate that is fair for the proxy's sendings on the path, bytes per second; 0 if none is known
//! ```
//! A message of an unknown type is skipped, so that newer ends may say more.

use bytes::{Buf, BufMut, Bytes};

use super::schedule::Policy;
use crate::{
    ids::{FlowId, PathId},
    wire::{self, WireError},
};

/// A message on the control flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// The flow's sender may send up to `limit`.
    Credit {
        /// The flow.
        flow: FlowId,
        /// An offset in the flow.
        limit: u64,
    },
    /// The flow is over in both directions.
    Abort {
        /// The flow.
        flow: FlowId,
        /// Why.
        code: AbortCode,
    },
    /// Nothing more is to be sent on the path, either way; what is under way still counts.
    Leave {
        /// The path.
        path: PathId,
        /// Why.
        why: Leaving,
    },
    /// The path's line has held the sender of this message back lately.
    Full {
        /// The path.
        path: PathId,
    },
    /// How the sender of this message wants chunks spread that are sent to it.
    Policy {
        /// The policy.
        policy: Policy,
    },
    /// The roster of the proxy's LAN.
    Roster {
        /// Its lines, as [`crate::community::listed`] writes them.
        lines: Bytes,
    },
    /// What the proxy's user may use and has.
    Quotas {
        /// As [`crate::community::quota::told`] writes it.
        quotas: Bytes,
    },
    /// The proxy's fair share of the line that a path runs over.
    FairRate {
        /// The path.
        path: PathId,
        /// Bytes per second, headers included; 0 if none is known.
        rate: u64,
    },
}

/// Why a path is to be left in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Leaving {
    /// Its relay or line goes away.
    Ends = 0,
    /// The LAN is served elsewhere now: a new path through the same relay is to take its place.
    Moves = 1,
}

/// Why a flow was aborted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum AbortCode {
    /// The application or the content server reset its connection.
    Reset = 1,
    /// More flows at once than the other end takes.
    TooManyFlows = 2,
    /// The other end broke the rules of the protocol on this flow.
    Protocol = 3,
    /// The session is over.
    SessionLost = 4,
}

/// The longest message that is taken in, in bytes.
const MAX_MESSAGE_BYTES: u64 = 16 * 1024;

const CREDIT: u8 = 0x01;
const ABORT: u8 = 0x02;
const ROSTER: u8 = 0x10;
const QUOTAS: u8 = 0x14;
const LEAVE: u8 = 0x11;
const FULL: u8 = 0x12;
const POLICY: u8 = 0x13;
const FAIR_RATE: u8 = 0x15;

impl Message {
    /// Appends the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(18);
        match self {
            Self::Credit { flow, limit } => {
                body.put_u8(CREDIT);
                wire::put_varint(&mut body, flow.0);
                wire::put_varint(&mut body, *limit);
            }
            Self::Abort { flow, code } => {
                body.put_u8(ABORT);
                wire::put_varint(&mut body, flow.0);
                body.put_u8(*code as u8);
            }
            Self::Leave { path, why } => {
                body.put_u8(LEAVE);
                wire::put_varint(&mut body, u64::from(path.0));
                body.put_u8(*why as u8);
            }
            Self::Full { path } => {
                body.put_u8(FULL);
                wire::put_varint(&mut body, u64::from(path.0));
            }
            Self::Policy { policy } => {
                body.put_u8(POLICY);
                body.put_u8(match policy {
                    Policy::Adaptive => 1,
                    Policy::WeightedRoundRobin => 2,
                    Policy::RoundRobin => 3,
                    Policy::Redundant => 4,
                });
            }
            Self::Roster { lines } => {
                body.put_u8(ROSTER);
                body.put_slice(lines);
            }
            Self::Quotas { quotas } => {
                body.put_u8(QUOTAS);
                body.put_slice(quotas);
            }
            Self::FairRate { path, rate } => {
                body.put_u8(FAIR_RATE);
                wire::put_varint(&mut body, u64::from(path.0));
                wire::put_varint(&mut body, *rate);
            }
        }
        wire::put_bytes(out, &body);
    }

    fn decode(mut body: &[u8]) -> Result<Option<Self>, WireError> {
        match wire::take_u8(&mut body)? {
            CREDIT => {
                let flow = FlowId(wire::take_varint(&mut body)?);
                Ok(Some(Self::Credit { flow, limit: wire::take_varint(&mut body)? }))
            }
            ABORT => {
                let flow = FlowId(wire::take_varint(&mut body)?);
                let code = match wire::take_u8(&mut body)? {
                    2 => AbortCode::TooManyFlows,
                    3 => AbortCode::Protocol,
                    4 => AbortCode::SessionLost,
                    _ => AbortCode::Reset,
                };
                Ok(Some(Self::Abort { flow, code }))
            }
            QUOTAS => Ok(Some(Self::Quotas { quotas: Bytes::copy_from_slice(body) })),
            ROSTER => Ok(Some(Self::Roster { lines: Bytes::copy_from_slice(body) })),
            POLICY => Ok(match wire::take_u8(&mut body)? {
                1 => Some(Self::Policy { policy: Policy::Adaptive }),
                2 => Some(Self::Policy { policy: Policy::WeightedRoundRobin }),
                3 => Some(Self::Policy { policy: Policy::RoundRobin }),
                4 => Some(Self::Policy { policy: Policy::Redundant }),
                _ => None,
            }),
            FAIR_RATE => {
                let path = take_path(&mut body)?;
                Ok(Some(Self::FairRate { path, rate: wire::take_varint(&mut body)? }))
            }
            FULL => Ok(Some(Self::Full { path: take_path(&mut body)? })),
            LEAVE => {
                let path = take_path(&mut body)?;
                let why = if wire::take_u8(&mut body)? == Leaving::Moves as u8 { Leaving::Moves } else { Leaving::Ends };
                Ok(Some(Self::Leave { path, why }))
            }
            _ => Ok(None),
        }
    }
}

fn take_path(body: &mut &[u8]) -> Result<PathId, WireError> {
    u32::try_from(wire::take_varint(body)?).map(PathId).map_err(|_| WireError::Value("path"))
}

/// Puts messages together from the control flow's bytes, however they are cut.
#[derive(Debug, Default)]
pub struct MessageReader {
    bytes: Vec<u8>,
    /// So many of them have been read.
    read: usize,
}

impl MessageReader {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.read));
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole message out that this end knows.
    ///
    /// # Errors
    /// If a message is longer than any may be, or cut short within itself.
    pub fn next_message(&mut self) -> Result<Option<Message>, WireError> {
        loop {
            if self.read == self.bytes.len() {
                self.bytes.clear();
                self.read = 0;
            }
            let mut input = &self.bytes[self.read..];
            let Ok(len) = wire::take_varint(&mut input) else { return Ok(None) };
            if len > MAX_MESSAGE_BYTES {
                return Err(WireError::Value("message length"));
            }
            let len = len as usize;
            if input.remaining() < len {
                return Ok(None);
            }
            let message = Message::decode(&input[..len])?;
            self.read = self.bytes.len() - input.len() + len;
            if message.is_some() {
                return Ok(message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_however_they_are_cut_and_unknown_ones_are_skipped() {
        let messages = [
            Message::Credit { flow: FlowId(7), limit: 1 << 40 },
            Message::Abort { flow: FlowId(1 << 20), code: AbortCode::TooManyFlows },
            Message::Credit { flow: FlowId(0), limit: 1 },
            Message::Leave { path: PathId(300), why: Leaving::Moves },
            Message::Full { path: PathId(7) },
            Message::Policy { policy: Policy::WeightedRoundRobin },
            Message::Roster { lines: Bytes::from_static(b"lines") },
            Message::Quotas { quotas: Bytes::from_static(b"quotas") },
            Message::FairRate { path: PathId(9), rate: 1 << 27 },
        ];
        let mut bytes = Vec::new();
        messages[0].encode(&mut bytes);
        wire::put_bytes(&mut bytes, &[0x7f, 1, 2, 3]);
        messages[1].encode(&mut bytes);
        messages[2].encode(&mut bytes);
        messages[3..].iter().for_each(|message| message.encode(&mut bytes));
        let mut reader = MessageReader::default();
        let mut got = Vec::new();
        for byte in bytes {
            reader.push(&[byte]);
            while let Some(message) = reader.next_message().expect("valid") {
                got.push(message);
            }
        }
        assert_eq!(got, messages);
    }

    /// Ends in no time that anybody waits for if each message moves those behind it.
    #[test]
    fn a_flood_of_small_messages_is_read_in_one_pass() {
        let mut reader = MessageReader::default();
        reader.push(&[1, 0x7f].repeat(8 << 20));
        Message::Full { path: PathId(7) }.encode(&mut reader.bytes);
        assert_eq!(reader.next_message(), Ok(Some(Message::Full { path: PathId(7) })));
        assert_eq!(reader.next_message(), Ok(None));
    }

    #[test]
    fn a_message_too_long_to_be_one_is_refused() {
        let mut reader = MessageReader::default();
        let mut bytes = Vec::new();
        wire::put_varint(&mut bytes, MAX_MESSAGE_BYTES + 1);
        reader.push(&bytes);
        assert!(reader.next_message().is_err());
    }
}
