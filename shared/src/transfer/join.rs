//! How a path joins its session: one message each way on the first stream of the path's connection.
//!
//! ```text
//! request = length (u16), version (u8), session (16), secret (32), path (varint), incarnation (u64, 0: none yet),
//!           weight down (u16, origin (1 byte)), line (1 byte), relay (length, name)
//! reply   = length (u16), 0x00, incarnation (u64) | length (u16), 0x01, reason (length, UTF-8) | length (u16), 0x02
//! ```
//! `proxy-local` chooses the session's name and secret, so that all its paths can join at once. `reconst` tells the incarnation: a number
//! that it draws when it makes the session. A path that names an incarnation joins that session or none (reply 0x02): a `reconst` that
//! was restarted, or has given the session up, knows nothing of its flows.

use std::fmt;

use bytes::{Buf, BufMut};

use crate::{
    community::weight::LineWeight,
    ids::{PathId, SessionId},
    wire::{self, WireError},
};

/// The version of the protocol that this code speaks.
pub const VERSION: u8 = 1;

/// The longest request or reply behind its length, in bytes.
pub const MESSAGE_MAX: usize = 512;

/// A session's secret. Prints as `***`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionSecret(pub [u8; 32]);

/// What a path says to join.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinRequest {
    /// The session.
    pub session: SessionId,
    /// The session's secret, which no other member knows.
    pub secret: SessionSecret,
    /// The path's number.
    pub path: PathId,
    /// The incarnation that other paths were told, if any.
    pub incarnation: Option<u64>,
    /// The line's weight from `reconst` to the LAN.
    pub weight_down: LineWeight,
    /// The line's number within its relay.
    pub line: u8,
    /// The relay's name, for people; at most 63 bytes.
    pub relay: String,
}

/// What `reconst` answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JoinReply {
    /// The path is in.
    Joined {
        /// The session's incarnation; never 0.
        incarnation: u64,
    },
    /// It is not.
    Refused {
        /// A sentence for the user.
        reason: String,
    },
    /// There is no such session any more: begin another.
    Unknown,
}

impl JoinRequest {
    /// The message with its length.
    pub fn encode(&self) -> Vec<u8> {
        framed(|out| {
            out.put_u8(VERSION);
            out.put_slice(&self.session.0);
            out.put_slice(&self.secret.0);
            wire::put_varint(out, u64::from(self.path.0));
            out.put_u64(self.incarnation.unwrap_or(0));
            self.weight_down.encode(out);
            out.put_u8(self.line);
            wire::put_bytes(out, self.relay.as_bytes());
        })
    }

    /// The message without its length.
    ///
    /// # Errors
    /// If it is cut short, of another version or holds what can't be.
    pub fn decode(mut input: &[u8]) -> Result<Self, WireError> {
        let input = &mut input;
        if wire::take_u8(input)? != VERSION {
            return Err(WireError::Value("version"));
        }
        let session = SessionId(wire::take_array(input)?);
        let secret = SessionSecret(wire::take_array(input)?);
        let path = PathId(u32::try_from(wire::take_varint(input)?).map_err(|_| WireError::Value("path"))?);
        let incarnation = u64::from_be_bytes(wire::take_array(input)?);
        let weight_down = LineWeight::decode(input)?;
        let line = wire::take_u8(input)?;
        let relay = String::from_utf8(wire::take_bytes(input, 63, "relay")?).map_err(|_| WireError::Value("relay"))?;
        Ok(Self { session, secret, path, incarnation: (incarnation != 0).then_some(incarnation), weight_down, line, relay })
    }
}

impl JoinReply {
    /// The message with its length.
    pub fn encode(&self) -> Vec<u8> {
        framed(|out| match self {
            Self::Joined { incarnation } => {
                out.put_u8(0);
                out.put_u64(*incarnation);
            }
            Self::Refused { reason } => {
                out.put_u8(1);
                wire::put_bytes(out, &reason.as_bytes()[..reason.floor_char_boundary(255)]);
            }
            Self::Unknown => out.put_u8(2),
        })
    }

    /// The message without its length.
    ///
    /// # Errors
    /// If it is cut short or holds what can't be.
    pub fn decode(mut input: &[u8]) -> Result<Self, WireError> {
        let input = &mut input;
        match wire::take_u8(input)? {
            0 => Ok(Self::Joined { incarnation: u64::from_be_bytes(wire::take_array(input)?) }),
            1 => {
                let reason = wire::take_bytes(input, 255, "reason")?;
                Ok(Self::Refused { reason: String::from_utf8_lossy(&reason).into_owned() })
            }
            2 => Ok(Self::Unknown),
            _ => Err(WireError::Value("join reply")),
        }
    }
}

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn framed(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0, 0];
    write(&mut out);
    let len = out.len() as u16 - 2;
    out[..2].copy_from_slice(&len.to_be_bytes());
    out
}

/// The length that a message's first two bytes tell.
///
/// # Errors
/// If it is longer than [`MESSAGE_MAX`].
pub fn message_len(mut first: &[u8]) -> Result<usize, WireError> {
    let len = usize::from(first.get_u16());
    if len > MESSAGE_MAX { Err(WireError::Value("message length")) } else { Ok(len) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn requests_and_replies_come_back_as_they_were(session: [u8; 16], secret: [u8; 32], path: u32, incarnation in 1u64.., weight_down: u16, line: u8, relay in "[a-z0-9]{0,63}", reason in "\\PC{0,60}") {
            let request = JoinRequest { session: SessionId(session), secret: SessionSecret(secret), path: PathId(path), incarnation: Some(incarnation), weight_down: LineWeight::set(weight_down), line, relay };
            let bytes = request.encode();
            prop_assert_eq!(message_len(&bytes), Ok(bytes.len() - 2));
            prop_assert_eq!(JoinRequest::decode(&bytes[2..]), Ok(request));
            for reply in [JoinReply::Joined { incarnation }, JoinReply::Refused { reason }, JoinReply::Unknown] {
                prop_assert_eq!(JoinReply::decode(&reply.encode()[2..]), Ok(reply));
            }
        }

        #[test]
        fn random_bytes_never_panic(input: Vec<u8>) {
            let _ = JoinRequest::decode(&input);
            let _ = JoinReply::decode(&input);
        }
    }
}
