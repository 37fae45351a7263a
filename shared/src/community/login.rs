//! What a relay and `reconst` say to each other on a login.
//!
//! A login is one QUIC connection over one line, authenticated both ways by certificate, with one bidirectional stream that the relay
//! opens. Each message is a frame: its length as a varint, a kind, fields. The relay begins with [`FromRelay::Login`]; `reconst`
//! answers with [`FromReconst::Serving`] and sends it again, whole, whenever it changes. A refusal is the connection's close with a
//! [`CloseCode`] and a sentence.
//!
//! Always holds: no frame is longer than [`FRAME_MAX`], and an unknown kind is skipped, so that either end may be the older one.
//! Sending, reconnecting and believing are left to the ends.

use bytes::{Buf, BufMut};

use crate::{
    ids::LanId,
    target::Target,
    wire::{self, WireError},
};

/// The version of the login that this code speaks.
pub const VERSION: u8 = 1;

/// The longest frame, in bytes without its length: room for the roster of a large LAN, small enough to hold for every relay.
pub const FRAME_MAX: usize = 16 * 1024;

/// The most LANs that one [`FromReconst::Serving`] lists: what fits a frame, whatever the targets.
pub const SERVING_MAX: usize = 60;

/// A message of the relay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromRelay {
    /// The first message.
    Login {
        /// The newest version of the login that the relay speaks.
        version: u8,
        /// The line that the connection runs over, numbered within its relay.
        line: u8,
    },
    /// A signed announcement, as it is sent on the LAN.
    Active(Vec<u8>),
}

/// A message of `reconst`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromReconst {
    /// Where the paths of the relay's LANs are served from now on; replaces what was said before.
    Serving(Vec<Placement>),
}

/// Where one LAN's paths are served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// The LAN.
    pub lan: LanId,
    /// Its data address.
    pub data: DataAddress,
}

/// The address of a LAN's data port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DataAddress {
    /// This port of the address that the login reached.
    Here(u16),
    /// Another server's.
    Elsewhere(Target),
}

/// Why `reconst` closed a login, or the connection of a path; the reason's text is a sentence for the member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum CloseCode {
    /// The end is going away in order: connect again soon, there or elsewhere.
    Leaving = 0,
    /// The member may not: connecting again won't help until an operator acts.
    Denied = 1,
    /// The other end broke the protocol.
    Protocol = 2,
    /// No room now: connect again later.
    Busy = 3,
}

impl CloseCode {
    /// The code that a connection was closed with, if it is one of these.
    pub fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            0 => Self::Leaving,
            1 => Self::Denied,
            2 => Self::Protocol,
            3 => Self::Busy,
            _ => return None,
        })
    }

    /// The code on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }
}

impl FromRelay {
    /// Appends the message as a frame.
    ///
    /// # Panics
    /// If an announcement does not fit [`FRAME_MAX`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, |frame| match self {
            Self::Login { version, line } => {
                frame.put_u8(KIND_LOGIN);
                frame.put_u8(*version);
                frame.put_u8(*line);
            }
            Self::Active(announcement) => {
                frame.put_u8(KIND_ACTIVE);
                frame.put_slice(announcement);
            }
        });
    }

    /// The message in a frame that [`Frames`] gave; none if this version knows no such message.
    ///
    /// # Errors
    /// If the frame can't be read.
    pub fn decode(mut frame: &[u8]) -> Result<Option<Self>, WireError> {
        Ok(Some(match wire::take_u8(&mut frame)? {
            KIND_LOGIN => match wire::take_u8(&mut frame)? {
                0 => return Err(WireError::Value("login version")),
                version => Self::Login { version, line: wire::take_u8(&mut frame)? },
            },
            KIND_ACTIVE => Self::Active(frame.to_vec()),
            _ => return Ok(None),
        }))
    }
}

impl FromReconst {
    /// Appends the message as a frame.
    ///
    /// # Panics
    /// If it lists more than [`SERVING_MAX`] LANs.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Self::Serving(placements) = self;
        assert!(placements.len() <= SERVING_MAX, "reconst places at most SERVING_MAX LANs of one relay");
        put_frame(out, |frame| {
            frame.put_u8(KIND_SERVING);
            wire::put_varint(frame, placements.len() as u64);
            for Placement { lan, data } in placements {
                frame.put_u16(lan.0);
                match data {
                    DataAddress::Here(port) => {
                        frame.put_u8(HERE);
                        frame.put_u16(*port);
                    }
                    DataAddress::Elsewhere(target) => {
                        frame.put_u8(ELSEWHERE);
                        target.encode(frame);
                    }
                }
            }
        });
    }

    /// The message in a frame that [`Frames`] gave; none if this version knows no such message.
    ///
    /// # Errors
    /// If the frame can't be read.
    pub fn decode(mut frame: &[u8]) -> Result<Option<Self>, WireError> {
        let input = &mut frame;
        if wire::take_u8(input)? != KIND_SERVING {
            return Ok(None);
        }
        let count = wire::take_varint(input)?;
        if count > SERVING_MAX as u64 {
            return Err(WireError::Value("number of LANs"));
        }
        let placements = (0..count).map(|_| take_placement(input)).collect::<Result<_, _>>()?;
        Ok(Some(Self::Serving(placements)))
    }
}

fn take_placement(input: &mut impl Buf) -> Result<Placement, WireError> {
    let lan = LanId(wire::take_u16(input)?);
    let data = match wire::take_u8(input)? {
        HERE => match wire::take_u16(input)? {
            0 => return Err(WireError::Value("data port")),
            port => DataAddress::Here(port),
        },
        ELSEWHERE => DataAddress::Elsewhere(Target::decode(input)?),
        _ => return Err(WireError::Value("data address")),
    };
    Ok(Placement { lan, data })
}

fn put_frame(out: &mut Vec<u8>, fields: impl FnOnce(&mut Vec<u8>)) {
    let mut frame = Vec::new();
    fields(&mut frame);
    assert!(frame.len() <= FRAME_MAX, "our own messages fit a frame");
    wire::put_bytes(out, &frame);
}

/// Puts the bytes of a login's stream together to frames; holds less than two frames.
#[derive(Default, Debug)]
pub struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    /// Takes the next bytes of the stream. Drain [`Frames::poll_frame`] before the next call: that is what bounds the buffer.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, without its length; none until more bytes come.
    ///
    /// # Errors
    /// [`WireError::Value`] if a frame is longer than [`FRAME_MAX`]: nothing more can be read from the stream.
    pub fn poll_frame(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        let mut input = &self.buffer[..];
        let frame = match wire::take_bytes(&mut input, FRAME_MAX, "length") {
            Ok(frame) => frame,
            Err(WireError::Short) => return Ok(None),
            Err(error) => return Err(error),
        };
        let read = self.buffer.len() - input.len();
        self.buffer.drain(..read);
        Ok(Some(frame))
    }
}

const KIND_LOGIN: u8 = 1;
const KIND_ACTIVE: u8 = 2;
const KIND_SERVING: u8 = 1;
const HERE: u8 = 0;
const ELSEWHERE: u8 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_messages_of_a_login_come_back_as_they_were() {
        for message in [FromRelay::Login { version: VERSION, line: 7 }, FromRelay::Active(vec![1, 2, 3])] {
            let mut out = Vec::new();
            message.encode(&mut out);
            assert_eq!(FromRelay::decode(&frames_of(&out).concat()), Ok(Some(message)));
        }
        let message = FromReconst::Serving(vec![
            Placement { lan: LanId(15), data: DataAddress::Here(10015) },
            Placement { lan: LanId(16), data: DataAddress::Elsewhere("isp.example:10016".parse().expect("a target")) },
        ]);
        let mut out = Vec::new();
        message.encode(&mut out);
        assert_eq!(FromReconst::decode(&frames_of(&out).concat()), Ok(Some(message)));
    }

    #[test]
    fn the_longest_list_of_lans_fits_a_frame() {
        let target = Target { host: crate::target::Host::Name("a".repeat(63) + &".b".repeat(95)), port: 1 };
        let placement = Placement { lan: LanId(1), data: DataAddress::Elsewhere(target) };
        let mut out = Vec::new();
        FromReconst::Serving(vec![placement; SERVING_MAX]).encode(&mut out);
        assert_eq!(frames_of(&out).len(), 1);
    }

    #[test]
    fn a_message_from_a_later_version_is_skipped() {
        assert_eq!(FromRelay::decode(&[200, 1, 2]), Ok(None));
        assert_eq!(FromReconst::decode(&[200, 1, 2]), Ok(None));
    }

    #[test]
    fn a_frame_longer_than_the_limit_is_refused_by_its_length_alone() {
        let mut frames = Frames::default();
        let mut length = Vec::new();
        wire::put_varint(&mut length, FRAME_MAX as u64 + 1);
        frames.handle_bytes(&length);
        assert!(frames.poll_frame().is_err());
    }

    proptest! {
        #[test]
        fn frames_do_not_depend_on_how_the_bytes_arrive(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8), piece in 1usize..50) {
            let mut stream = Vec::new();
            for content in &contents {
                wire::put_bytes(&mut stream, content);
            }
            let mut frames = Frames::default();
            let mut read = Vec::new();
            for bytes in stream.chunks(piece) {
                frames.handle_bytes(bytes);
                while let Some(frame) = frames.poll_frame().expect("frames within the limit") {
                    read.push(frame);
                }
            }
            prop_assert_eq!(read, contents);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = FromRelay::decode(&bytes);
            let _ = FromReconst::decode(&bytes);
            let mut frames = Frames::default();
            frames.handle_bytes(&bytes);
            while let Ok(Some(_)) = frames.poll_frame() {}
        }
    }

    fn frames_of(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Frames::default();
        frames.handle_bytes(bytes);
        let mut read = Vec::new();
        while let Some(frame) = frames.poll_frame().expect("frames within the limit") {
            read.push(frame);
        }
        read
    }
}
