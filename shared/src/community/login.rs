//! What a relay and `reconst` say to each other on a login.
//!
//! A login is one QUIC connection over one line, authenticated both ways by certificate, with one bidirectional stream that the relay
//! opens. Each message is a frame: its length as a varint, a kind, fields. The relay begins with [`FromRelay::Login`]; `reconst`
//! answers with [`FromReconst::Serving`] and sends it again, whole, whenever it changes. A refusal is the connection's close with a
//! [`CloseCode`] and a sentence.
//!
//! Always holds: no frame is longer than [`FRAME_MAX`], and an unknown kind is skipped, so that either end may be the older one.
//! Sending, reconnecting and believing are left to the ends.

use std::net::IpAddr;

use bytes::{Buf, BufMut};

use super::{
    announce::LineState,
    hello::{put_ip, take_ip},
    member::CertificateMark,
    weight::Weights,
};
use crate::{
    ids::LanId,
    target::Target,
    units::Rate,
    wire::{self, WireError},
};

/// The version of the login that this code speaks.
pub const VERSION: u8 = 1;

/// The longest frame, in bytes without its length: room for any list of LANs, small enough to hold for every relay.
pub const FRAME_MAX: usize = 16 * 1024;

/// The most LANs that one [`FromReconst::Serving`] lists: what fits a frame, whatever the targets.
pub const SERVING_MAX: usize = 60;

/// The most certificates that one [`FromReconst::Removed`] lists: years of members who left, and 2 KB, which is half a second of a modem.
pub const REMOVED_MAX: usize = 256;

/// The most nodes that one [`FromReconst::Nodes`] lists: more would be tried for longer than a user waits.
pub const NODES_MAX: usize = 8;

/// The most addresses of one relay that are told: a PC with Ethernet and Wi-Fi, each with IPv4 and IPv6, and as many again.
pub const ADDRESSES_MAX: usize = 8;

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
    /// The line is there; its traffic says the same.
    Active(LineActive),
    /// The line is about to leave: its paths drain.
    ShutDown,
}

/// What a relay says of the line that its login runs over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LineActive {
    /// The relay's addresses on its LAN, at most [`ADDRESSES_MAX`]; link-local ones mean nothing elsewhere and are left out.
    pub addresses: Vec<IpAddr>,
    /// The line's port on the LAN, 1 to 65,535.
    pub port: u16,
    /// Its weights.
    pub weights: Weights,
    /// Whether it serves.
    pub state: LineState,
    /// The time to the next one, in milliseconds, 1 to 65,535.
    pub interval_ms: u16,
}

/// A message of `reconst`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromReconst {
    /// Where the paths of the relay's LANs are served from now on; replaces what was said before.
    Serving(Vec<Placement>),
    /// How fast the line is, as far as `reconst` has measured it, in bits per second.
    LineRate {
        /// From the relay to `reconst`.
        up: Option<Rate>,
        /// From `reconst` to the relay.
        down: Option<Rate>,
    },
    /// The certificates of the relay's LAN that make nobody a user any more, though their time is not over; replaces what was said
    /// before.
    Removed(Vec<CertificateMark>),
    /// Where the relay may log in; replaces what was said before, and the profile comes after it. Sent before the [`FromReconst::Serving`] that
    /// it belongs to.
    Nodes(Nodes),
}

/// The servers of one `reconst`, for a relay of one LAN.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Nodes {
    /// Their login ports in the order in which to try them, at most [`NODES_MAX`]; the first one's serves the LAN.
    pub logins: Vec<Target>,
    /// Whether the LAN's paths are served nowhere else any more: those that were made elsewhere are lost.
    pub is_only_here: bool,
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

/// Why `reconst` closed a login, or the connection of a path, or a proxy did; the reason's text is a sentence for the member.
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
    /// The LAN is served elsewhere: connect again at once, as `reconst` says where.
    Moved = 4,
    /// From a proxy: its session is over, and the flows on it.
    Over = 5,
}

impl CloseCode {
    /// The code that a connection was closed with, if it is one of these.
    pub fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            0 => Self::Leaving,
            1 => Self::Denied,
            2 => Self::Protocol,
            3 => Self::Busy,
            4 => Self::Moved,
            5 => Self::Over,
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
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, |frame| match self {
            Self::Login { version, line } => {
                frame.put_u8(KIND_LOGIN);
                frame.put_u8(*version);
                frame.put_u8(*line);
            }
            Self::Active(LineActive { addresses, port, weights, state, interval_ms }) => {
                frame.put_u8(KIND_ACTIVE);
                frame.put_u16(*port);
                weights.encode(frame);
                frame.put_u8(*state as u8);
                frame.put_u16(*interval_ms);
                let addresses = &addresses[..addresses.len().min(ADDRESSES_MAX)];
                frame.put_u8(addresses.len() as u8);
                addresses.iter().for_each(|address| put_ip(frame, *address));
            }
            Self::ShutDown => frame.put_u8(KIND_SHUT_DOWN),
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
            KIND_ACTIVE => Self::Active(LineActive::decode(&mut frame)?),
            KIND_SHUT_DOWN => Self::ShutDown,
            _ => return Ok(None),
        }))
    }
}

impl FromReconst {
    /// Appends the message as a frame.
    ///
    /// # Panics
    /// If it lists more than [`SERVING_MAX`] LANs, [`REMOVED_MAX`] certificates or [`NODES_MAX`] nodes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, |frame| match self {
            Self::Serving(placements) => Self::encode_serving(frame, placements),
            Self::LineRate { up, down } => {
                frame.put_u8(KIND_LINE_RATE);
                for rate in [up, down] {
                    wire::put_varint(frame, rate.map_or(0, |rate| rate.bits_per_second.min(wire::VARINT_MAX)));
                }
            }
            Self::Removed(certificates) => {
                assert!(certificates.len() <= REMOVED_MAX, "reconst tells of at most REMOVED_MAX");
                frame.put_u8(KIND_REMOVED);
                wire::put_varint(frame, certificates.len() as u64);
                certificates.iter().for_each(|mark| frame.put_slice(&mark.0));
            }
            Self::Nodes(Nodes { logins, is_only_here }) => {
                assert!(logins.len() <= NODES_MAX, "reconst tells of at most NODES_MAX");
                frame.put_u8(KIND_NODES);
                frame.put_u8(u8::from(*is_only_here));
                frame.put_u8(logins.len() as u8);
                logins.iter().for_each(|login| login.encode(frame));
            }
        });
    }

    fn encode_serving(frame: &mut Vec<u8>, placements: &[Placement]) {
        assert!(placements.len() <= SERVING_MAX, "reconst places at most SERVING_MAX LANs of one relay");
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
    }

    /// The message in a frame that [`Frames`] gave; none if this version knows no such message.
    ///
    /// # Errors
    /// If the frame can't be read.
    pub fn decode(mut frame: &[u8]) -> Result<Option<Self>, WireError> {
        let input = &mut frame;
        match wire::take_u8(input)? {
            KIND_SERVING => Self::decode_serving(input).map(Some),
            KIND_LINE_RATE => {
                let mut rate = || {
                    let bits_per_second = wire::take_varint(input)?;
                    Ok((bits_per_second > 0).then_some(Rate { bits_per_second }))
                };
                Ok(Some(Self::LineRate { up: rate()?, down: rate()? }))
            }
            KIND_REMOVED => {
                let count = wire::take_varint(input)?;
                if count > REMOVED_MAX as u64 {
                    return Err(WireError::Value("number of certificates"));
                }
                let certificates = (0..count).map(|_| Ok(CertificateMark(wire::take_array(input)?))).collect::<Result<_, WireError>>()?;
                Ok(Some(Self::Removed(certificates)))
            }
            KIND_NODES => {
                let is_only_here = match wire::take_u8(input)? {
                    0 => false,
                    1 => true,
                    _ => return Err(WireError::Value("whether served elsewhere")),
                };
                let count = usize::from(wire::take_u8(input)?);
                if count > NODES_MAX {
                    return Err(WireError::Value("number of nodes"));
                }
                let logins = (0..count).map(|_| Target::decode(input)).collect::<Result<_, WireError>>()?;
                Ok(Some(Self::Nodes(Nodes { logins, is_only_here })))
            }
            _ => Ok(None),
        }
    }

    fn decode_serving(input: &mut &[u8]) -> Result<Self, WireError> {
        let count = wire::take_varint(input)?;
        if count > SERVING_MAX as u64 {
            return Err(WireError::Value("number of LANs"));
        }
        let placements = (0..count).map(|_| take_placement(input)).collect::<Result<_, _>>()?;
        Ok(Self::Serving(placements))
    }
}

impl LineActive {
    fn decode(input: &mut &[u8]) -> Result<Self, WireError> {
        let port = match wire::take_u16(input)? {
            0 => return Err(WireError::Value("port")),
            port => port,
        };
        let weights = Weights::decode(input)?;
        let state = LineState::decode(input)?;
        let interval_ms = match wire::take_u16(input)? {
            0 => return Err(WireError::Value("interval")),
            interval_ms => interval_ms,
        };
        let count = usize::from(wire::take_u8(input)?);
        if count > ADDRESSES_MAX {
            return Err(WireError::Value("number of addresses"));
        }
        let addresses = (0..count).map(|_| take_ip(input)).collect::<Result<_, _>>()?;
        Ok(Self { addresses, port, weights, state, interval_ms })
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
const KIND_SHUT_DOWN: u8 = 3;
const KIND_SERVING: u8 = 1;
const KIND_LINE_RATE: u8 = 2;
const KIND_REMOVED: u8 = 4;
const KIND_NODES: u8 = 5;
const HERE: u8 = 0;
const ELSEWHERE: u8 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_messages_of_a_login_come_back_as_they_were() {
        let active = LineActive {
            addresses: vec![[10, 0, 1, 3].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 3].into()],
            port: 7654,
            weights: Weights::default(),
            state: LineState::Paused,
            interval_ms: 1000,
        };
        for message in [FromRelay::Login { version: VERSION, line: 7 }, FromRelay::Active(active), FromRelay::ShutDown] {
            let mut out = Vec::new();
            message.encode(&mut out);
            assert_eq!(FromRelay::decode(&frames_of(&out).concat()), Ok(Some(message)));
        }
        let serving = FromReconst::Serving(vec![
            Placement { lan: LanId(15), data: DataAddress::Here(10015) },
            Placement { lan: LanId(16), data: DataAddress::Elsewhere("isp.example:10016".parse().expect("a target")) },
        ]);
        let rate = FromReconst::LineRate { up: None, down: Some(Rate { bits_per_second: 36_000_000 }) };
        let login = |host: &str| format!("{host}:10000").parse().expect("a target");
        let nodes = FromReconst::Nodes(Nodes { logins: vec![login("b.isp.example"), login("192.0.2.1")], is_only_here: true });
        let (removed, nobody) = (FromReconst::Removed(vec![CertificateMark([7; 8]); REMOVED_MAX]), FromReconst::Removed(Vec::new()));
        for message in [serving, rate, removed, nobody, nodes, FromReconst::Nodes(Nodes::default())] {
            let mut out = Vec::new();
            message.encode(&mut out);
            assert_eq!(FromReconst::decode(&frames_of(&out).concat()), Ok(Some(message)));
        }
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
