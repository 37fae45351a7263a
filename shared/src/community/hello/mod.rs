//! How a proxy asks a relay for service: `HELLO`, `CHALLENGE`, `WELCOME` and refusals.
//!
//! These messages share a relay's LAN port with QUIC packets and are told apart by the first byte ([`is_quic`]). What always
//! holds: a relay answers no message with a longer one, keeps no state for an address that has not shown that it receives what
//! is sent there (the cookie), and does no costly work for it. A signed `HELLO` names the address it was sent to, so that one
//! that somebody else took up or passed on admits nobody. Sending, receiving and retransmitting are left to the drivers, the
//! certificates to whoever calls.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use bytes::{Buf, BufMut};
use thiserror::Error;

use super::{member::Identity, weight::Weights};
use crate::{
    ids::LanId,
    wire::{self, WireError},
};

mod admission;
pub mod carry;

pub use admission::{Admission, AdmissionConfig, AdmissionCounters, Answer, Judged, PendingHello};

/// A proxy's own random number: answers repeat it, so that nobody who has not seen the request can answer it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nonce(pub [u8; 16]);

/// Shows that its bearer receives what is sent to its address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cookie(pub [u8; 16]);

/// A line of a relay as a message names it: 1 to 255, or 0 for the line that the port serves, whichever it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LineNumber(pub u8);

impl LineNumber {
    /// The line that the port serves.
    pub const ANY: Self = Self(0);
}

/// What a proxy asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Repeated by every answer.
    pub nonce: Nonce,
    /// The LAN as whose member the proxy asks.
    pub lan: LanId,
    /// The line wanted.
    pub line: LineNumber,
    /// The relay's address and port, as the proxy sees them.
    pub relay: SocketAddr,
}

/// A `HELLO` as received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// What is asked for.
    pub request: Request,
    /// The proof that came with it; a first `HELLO` has none.
    pub proof: Option<Proof>,
}

/// What makes a `HELLO` worth an admission.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    /// The relay's cookie for the sender's address.
    pub cookie: Cookie,
    /// The proxy's certificate, DER, at most [`CERTIFICATE_MAX_BYTES`].
    pub certificate: Vec<u8>,
    /// The certificate's key over [`signed_hello`].
    pub signature: Vec<u8>,
}

/// A relay's answer to a `HELLO`, as received: nothing in it is verified yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Ask again with this cookie.
    Challenge(Cookie),
    /// The address may send.
    Welcome(WelcomeMessage),
    /// It may not.
    Refused(HelloRefusal),
}

/// A `WELCOME` as received; [`signed_welcome`] is what its signature must cover.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WelcomeMessage {
    /// The line that serves.
    pub line: LineNumber,
    /// Its weights.
    pub weights: Weights,
    /// The relay's certificate, DER.
    pub certificate: Vec<u8>,
    /// The certificate's key over [`signed_welcome`].
    pub signature: Vec<u8>,
}

/// A relay's verified consent to serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The relay.
    pub relay: Identity,
    /// Its line.
    pub line: LineNumber,
    /// The line's weights at this moment.
    pub weights: Weights,
}

/// Why a relay does not serve a proxy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Error)]
#[repr(u8)]
pub enum HelloRefusal {
    /// The relay has not reached its `reconst` yet, or not again.
    #[error("the relay has no connection to reconst yet")]
    NotReady = 1,
    /// As many proxies as the relay serves at once.
    #[error("the relay serves as many proxies as it can")]
    Full = 2,
    /// More requests than the relay looks at in a second.
    #[error("the relay is asked by too many at once")]
    Busy = 3,
    /// The relay stops.
    #[error("the relay is shutting down")]
    Draining = 4,
    /// The relay is in another LAN.
    #[error("the relay belongs to another LAN: use a relay of your own LAN, or the profile of the relay's")]
    WrongLan = 5,
    /// The port serves another line.
    #[error("the relay serves another line on this port")]
    WrongLine = 6,
    /// The `HELLO` was signed for another address.
    #[error("the relay is reached under an address it does not know as its own: list it in the relay's `also-reached-as`")]
    WrongAddress = 7,
    /// The certificate is not that of a user of this LAN, or the signature is wrong.
    #[error("the relay does not accept this certificate: check that both PCs' clocks are right and ask for a new profile")]
    NotAMember = 8,
    /// The relay's owner has it carry no strangers.
    #[error("the relay's owner does not let it carry those who join")]
    NotCarried = 9,
    /// The line's owner has taken it back.
    #[error("its owner has paused this line")]
    Paused = 10,
    /// It is not the time of day at which the line is shared.
    #[error("this line is not shared at this time of day")]
    OutsideHours = 11,
    /// The line has carried what its owner shares a month.
    #[error("this line has carried all that its owner shares this month")]
    CapReached = 12,
    /// The certificate is one that `reconst` has told the relay of: its user was removed.
    #[error("this user was removed, or has a newer certificate: ask reconst's operator if that is a mistake")]
    Removed = 13,
}

impl HelloRefusal {
    /// Whether asking the same relay again soon is worth while.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::NotReady | Self::Full | Self::Busy)
    }
}

/// Whether a packet on a relay's port is QUIC's (RFC 9000 §17.2: the fixed bit) and not one of these messages.
pub fn is_quic(first_byte: u8) -> bool {
    first_byte & QUIC_FIXED_BIT != 0
}

impl Request {
    /// A first `HELLO`: no proof yet, padded to [`HELLO_BYTES`].
    pub fn encode_first(&self) -> Vec<u8> {
        let mut out = self.encode_head(None);
        wire::put_bytes(&mut out, &[]);
        wire::put_bytes(&mut out, &[]);
        pad(out)
    }

    /// A `HELLO` with its proof, padded to [`HELLO_BYTES`]; `sign` is given [`signed_hello`]'s bytes.
    pub fn encode_signed(&self, cookie: Cookie, certificate: &[u8], sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let signature = sign(&signed_hello(self, cookie, certificate));
        let mut out = self.encode_head(Some(cookie));
        wire::put_bytes(&mut out, certificate);
        wire::put_bytes(&mut out, &signature);
        pad(out)
    }

    fn encode_head(&self, cookie: Option<Cookie>) -> Vec<u8> {
        let mut out = Vec::with_capacity(HELLO_BYTES);
        out.put_slice(&[HELLO, VERSION]);
        out.put_slice(&self.nonce.0);
        out.put_u16(self.lan.0);
        out.put_u8(self.line.0);
        put_address(&mut out, self.relay);
        wire::put_bytes(&mut out, cookie.as_ref().map_or(&[], |cookie| &cookie.0));
        out
    }
}

impl Hello {
    /// Reads a `HELLO`.
    ///
    /// # Errors
    /// If it is shorter than [`HELLO_BYTES`], of another version, or has a field that can't be.
    pub fn decode(packet: &[u8]) -> Result<Self, WireError> {
        if packet.len() < HELLO_BYTES {
            return Err(WireError::Short);
        }
        let mut input = packet;
        take_header(&mut input, HELLO)?;
        let request = Request {
            nonce: Nonce(wire::take_array(&mut input)?),
            lan: LanId(wire::take_u16(&mut input)?),
            line: LineNumber(wire::take_u8(&mut input)?),
            relay: take_address(&mut input)?,
        };
        let cookie = wire::take_bytes(&mut input, 16, "cookie")?;
        let certificate = wire::take_bytes(&mut input, CERTIFICATE_MAX_BYTES, "certificate")?;
        let signature = wire::take_bytes(&mut input, SIGNATURE_MAX_BYTES, "signature")?;
        let proof = match cookie.len() {
            0 => None,
            16 => Some(Proof { cookie: Cookie(cookie.try_into().expect("16 bytes")), certificate, signature }),
            _ => return Err(WireError::Value("cookie")),
        };
        Ok(Self { request, proof })
    }
}

impl Reply {
    /// Reads a relay's answer to the request with `nonce`.
    ///
    /// # Errors
    /// If it is no answer, answers another request, or has a field that can't be.
    pub fn decode(packet: &[u8], nonce: Nonce) -> Result<Self, WireError> {
        let mut input = packet;
        match take_answer(&mut input, nonce)? {
            CHALLENGE => Ok(Self::Challenge(Cookie(wire::take_array(&mut input)?))),
            WELCOME => Ok(Self::Welcome(WelcomeMessage {
                line: LineNumber(wire::take_u8(&mut input)?),
                weights: Weights::decode(&mut input)?,
                certificate: wire::take_bytes(&mut input, CERTIFICATE_MAX_BYTES, "certificate")?,
                signature: wire::take_bytes(&mut input, SIGNATURE_MAX_BYTES, "signature")?,
            })),
            REFUSAL => HelloRefusal::try_from(wire::take_u8(&mut input)?).map(Self::Refused),
            _ => Err(WireError::Value("message type")),
        }
    }

    /// The answer's packet.
    pub fn encode(&self, nonce: Nonce) -> Vec<u8> {
        let kind = match self {
            Self::Challenge(_) => CHALLENGE,
            Self::Welcome(_) => WELCOME,
            Self::Refused(_) => REFUSAL,
        };
        let mut out = vec![kind, VERSION];
        out.put_slice(&nonce.0);
        match self {
            Self::Challenge(cookie) => out.put_slice(&cookie.0),
            Self::Welcome(welcome) => {
                out.put_u8(welcome.line.0);
                welcome.weights.encode(&mut out);
                wire::put_bytes(&mut out, &welcome.certificate);
                wire::put_bytes(&mut out, &welcome.signature);
            }
            Self::Refused(refusal) => out.put_u8(*refusal as u8),
        }
        out
    }
}

/// The bytes that the signature of a `HELLO` covers.
pub fn signed_hello(request: &Request, cookie: Cookie, certificate: &[u8]) -> Vec<u8> {
    let mut message = HELLO_CONTEXT.to_vec();
    message.extend(request.encode_head(Some(cookie)));
    wire::put_bytes(&mut message, certificate);
    message
}

/// The bytes that the signature of a `WELCOME` covers.
pub fn signed_welcome(nonce: Nonce, lan: LanId, line: LineNumber, weights: Weights) -> Vec<u8> {
    let mut message = WELCOME_CONTEXT.to_vec();
    message.put_slice(&nonce.0);
    message.put_u16(lan.0);
    message.put_u8(line.0);
    weights.encode(&mut message);
    message
}

/// Takes a message's type and version off the front of `input`.
pub(super) fn take_header(input: &mut impl Buf, kind: u8) -> Result<(), WireError> {
    if wire::take_u8(input)? != kind {
        return Err(WireError::Value("message type"));
    }
    if wire::take_u8(input)? != VERSION {
        return Err(WireError::Value("version"));
    }
    Ok(())
}

/// Takes what every answer to the request with `nonce` begins with; gives its type.
fn take_answer(input: &mut &[u8], nonce: Nonce) -> Result<u8, WireError> {
    let kind = wire::take_u8(input)?;
    if wire::take_u8(input)? != VERSION {
        return Err(WireError::Value("version"));
    }
    if wire::take_array(input)? != nonce.0 {
        return Err(WireError::Value("nonce"));
    }
    Ok(kind)
}

/// Appends an IP address: its version, its octets.
pub(super) fn put_ip(out: &mut impl BufMut, ip: IpAddr) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            out.put_u8(4);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(6);
            out.put_slice(&ip.octets());
        }
    }
}

/// Takes an IP address off the front of `input`.
pub(super) fn take_ip(input: &mut impl Buf) -> Result<IpAddr, WireError> {
    match wire::take_u8(input)? {
        4 => Ok(IpAddr::from(wire::take_array::<4>(input)?)),
        6 => Ok(IpAddr::from(wire::take_array::<16>(input)?).to_canonical()),
        _ => Err(WireError::Value("address")),
    }
}

fn put_address(out: &mut impl BufMut, address: SocketAddr) {
    put_ip(out, address.ip());
    out.put_u16(address.port());
}

fn take_address(input: &mut impl Buf) -> Result<SocketAddr, WireError> {
    Ok(SocketAddr::new(take_ip(input)?, wire::take_u16(input)?))
}

fn pad(mut out: Vec<u8>) -> Vec<u8> {
    debug_assert!(out.len() <= HELLO_BYTES, "the fields' limits add up to less");
    out.resize(out.len().max(HELLO_BYTES), 0);
    out
}

impl TryFrom<u8> for HelloRefusal {
    type Error = WireError;

    fn try_from(code: u8) -> Result<Self, WireError> {
        Ok(match code {
            1 => Self::NotReady,
            2 => Self::Full,
            3 => Self::Busy,
            4 => Self::Draining,
            5 => Self::WrongLan,
            6 => Self::WrongLine,
            7 => Self::WrongAddress,
            8 => Self::NotAMember,
            9 => Self::NotCarried,
            10 => Self::Paused,
            11 => Self::OutsideHours,
            12 => Self::CapReached,
            13 => Self::Removed,
            _ => return Err(WireError::Value("refusal")),
        })
    }
}

impl fmt::Display for LineNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.0)
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The version of the LAN protocol.
pub const VERSION: u8 = 1;

/// Each `HELLO`'s least length: the longest answer is shorter, and it fits the least MTU of IPv6 (1,280 bytes).
pub const HELLO_BYTES: usize = 1200;

/// The longest certificate in a message, in bytes: what a `HELLO` and an announcement have room for. A member's takes about 500.
pub const CERTIFICATE_MAX_BYTES: usize = 1024;

/// The longest signature in a message, in bytes: Ed25519 takes 64, ECDSA P-256 up to 72.
pub const SIGNATURE_MAX_BYTES: usize = 80;

const QUIC_FIXED_BIT: u8 = 0x40;
const HELLO: u8 = 0x01;
const CHALLENGE: u8 = 0x02;
const WELCOME: u8 = 0x03;
const REFUSAL: u8 = 0x04;

/// Told apart from everything else that a member's key signs.
const HELLO_CONTEXT: &[u8] = b"tributary hello 1\0";
const WELCOME_CONTEXT: &[u8] = b"tributary welcome 1\0";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn random_packets_are_refused_without_a_panic(packet in proptest::collection::vec(any::<u8>(), 0..1500)) {
            let _ = Hello::decode(&packet);
            let _ = Reply::decode(&packet, Nonce([0; 16]));
        }

        #[test]
        fn a_packet_with_the_right_beginning_never_panics(kind in 1u8..5, rest in proptest::collection::vec(any::<u8>(), 0..1500)) {
            let mut packet = vec![kind, VERSION];
            packet.extend(rest);
            let _ = Hello::decode(&packet);
            if let Some(nonce) = packet.get(2..18) {
                let _ = Reply::decode(&packet, Nonce(nonce.try_into().expect("16 bytes")));
            }
        }

        #[test]
        fn a_signed_hello_comes_back_as_it_was(
            nonce: [u8; 16], lan: u16, line: u8, relay: SocketAddr, cookie: [u8; 16],
            certificate in proptest::collection::vec(any::<u8>(), 0..=CERTIFICATE_MAX_BYTES),
            signature in proptest::collection::vec(any::<u8>(), 0..=SIGNATURE_MAX_BYTES),
        ) {
            let relay = SocketAddr::new(relay.ip().to_canonical(), relay.port());
            let request = Request { nonce: Nonce(nonce), lan: LanId(lan), line: LineNumber(line), relay };
            let packet = request.encode_signed(Cookie(cookie), &certificate, |_| signature.clone());
            prop_assert_eq!(packet.len(), HELLO_BYTES);
            let proof = Some(Proof { cookie: Cookie(cookie), certificate, signature });
            prop_assert_eq!(Hello::decode(&packet), Ok(Hello { request, proof }));
        }
    }

    #[test]
    fn every_answer_comes_back_as_it_was_and_is_shorter_than_the_hello() {
        let welcome = WelcomeMessage {
            line: LineNumber(3),
            weights: Weights::default(),
            certificate: vec![1; CERTIFICATE_MAX_BYTES],
            signature: vec![2; SIGNATURE_MAX_BYTES],
        };
        for reply in [Reply::Challenge(Cookie([9; 16])), Reply::Welcome(welcome), Reply::Refused(HelloRefusal::WrongAddress)] {
            let packet = reply.encode(Nonce([5; 16]));
            assert!(packet.len() < HELLO_BYTES && !is_quic(packet[0]));
            assert_eq!(Reply::decode(&packet, Nonce([5; 16])), Ok(reply));
            assert!(Reply::decode(&packet, Nonce([6; 16])).is_err(), "an answer to another request");
        }
    }

    #[test]
    fn every_refusal_has_its_own_code() {
        let refusals = (0..=255).filter_map(|code| HelloRefusal::try_from(code).ok().map(|refusal| (code, refusal as u8)));
        assert!(refusals.clone().all(|(code, own)| code == own));
        assert_eq!(refusals.count(), 13);
    }

    #[test]
    fn the_signature_covers_every_field() {
        let request = Request { nonce: Nonce([1; 16]), lan: LanId(15), line: LineNumber(1), relay: "10.0.1.3:7654".parse().unwrap() };
        let original = signed_hello(&request, Cookie([2; 16]), b"certificate");
        let altered = [
            signed_hello(&Request { nonce: Nonce([3; 16]), ..request }, Cookie([2; 16]), b"certificate"),
            signed_hello(&Request { lan: LanId(16), ..request }, Cookie([2; 16]), b"certificate"),
            signed_hello(&Request { line: LineNumber(2), ..request }, Cookie([2; 16]), b"certificate"),
            signed_hello(&Request { relay: "10.0.1.4:7654".parse().unwrap(), ..request }, Cookie([2; 16]), b"certificate"),
            signed_hello(&request, Cookie([3; 16]), b"certificate"),
            signed_hello(&request, Cookie([2; 16]), b"another"),
        ];
        assert!(altered.iter().all(|message| *message != original));
    }
}
