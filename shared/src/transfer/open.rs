//! What the first bytes of a flow say: where it goes, and whether it got there.
//!
//! ```text
//! request (proxy-local, before the application's bytes) = length (u16), 0x01 (TCP), target, [origin]
//!                                                       | length (u16), 0x02 (UDP), policy, [origin]
//! answer  (reconst, before the content server's bytes)  = 0x00 | refusal kind (1 byte), length (1 byte), reason (UTF-8)
//! origin  = the application's address and port, as proxy-local sees them, in the form of a target
//! policy  = how the parcels to proxy-local are spread: 1 adaptive, 2 wrr, 3 rr, 4 redundant
//! parcel of a UDP flow = target that it goes to, or comes from, and the datagram's bytes
//! ```
//! A UDP flow's stream ends where its parcels do and carries nothing else.
//! They are bytes of the flow itself, so that a flow needs no round trip of its own to be opened and no other flow waits for its request.

use std::net::SocketAddr;

use bytes::{Buf, BufMut};

use super::schedule::Policy;
use crate::{
    target::{Refusal, RefusalKind, Target},
    wire::{self, WireError},
};

/// The longest request behind its length, in bytes.
pub const REQUEST_MAX: usize = 300;

/// What a flow is opened for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// A connection, or parcels.
    pub kind: RequestKind,
    /// The application's end, as `proxy-local` sees it, if it tells.
    pub origin: Option<SocketAddr>,
}

/// What a flow carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestKind {
    /// The bytes of a TCP connection to this target.
    Tcp(Target),
    /// Parcels, those to `proxy-local` spread by this policy.
    Udp(Policy),
}

const TCP: u8 = 0x01;
const UDP: u8 = 0x02;

impl Request {
    /// The request with its length.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0, 0];
        match &self.kind {
            RequestKind::Tcp(target) => {
                out.put_u8(TCP);
                target.encode(&mut out);
            }
            RequestKind::Udp(policy) => {
                out.put_u8(UDP);
                out.put_u8(match policy {
                    Policy::Adaptive => 1,
                    Policy::WeightedRoundRobin => 2,
                    Policy::RoundRobin => 3,
                    Policy::Redundant => 4,
                });
            }
        }
        if let Some(origin) = self.origin {
            Target::from(origin).encode(&mut out);
        }
        let len = out.len() as u16 - 2;
        out[..2].copy_from_slice(&len.to_be_bytes());
        out
    }

    /// A request without its length.
    ///
    /// # Errors
    /// If it is cut short or holds what can't be.
    pub fn decode(mut input: &[u8]) -> Result<Self, WireError> {
        let kind = match wire::take_u8(&mut input)? {
            TCP => RequestKind::Tcp(Target::decode(&mut input)?),
            UDP => RequestKind::Udp(match wire::take_u8(&mut input)? {
                1 => Policy::Adaptive,
                2 => Policy::WeightedRoundRobin,
                3 => Policy::RoundRobin,
                4 => Policy::Redundant,
                _ => return Err(WireError::Value("policy")),
            }),
            _ => return Err(WireError::Value("flow kind")),
        };
        let origin = if input.is_empty() { None } else { Some(Target::decode(&mut input)?) };
        let origin = origin.map(|origin| origin.address().ok_or(WireError::Value("origin"))).transpose()?;
        Ok(Self { kind, origin })
    }
}

/// The length that a request's first two bytes tell.
///
/// # Errors
/// If it is longer than [`REQUEST_MAX`].
pub fn request_len(mut first: &[u8]) -> Result<usize, WireError> {
    let len = usize::from(first.get_u16());
    if len > REQUEST_MAX { Err(WireError::Value("request length")) } else { Ok(len) }
}

/// The answer to a request that was carried out, or the refusal.
pub fn encode_answer(answer: &Result<(), Refusal>) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Ok(()) => out.put_u8(0),
        Err(refusal) => {
            let reason = &refusal.reason.as_bytes()[..refusal.reason.floor_char_boundary(Refusal::REASON_MAX)];
            out.put_u8(refusal.kind as u8);
            out.put_u8(reason.len() as u8);
            out.put_slice(reason);
        }
    }
    out
}

/// The refusal of an answer's kind and reason.
pub fn decode_refusal(kind: u8, reason: &[u8]) -> Refusal {
    let kind = RefusalKind::try_from(kind).unwrap_or(RefusalKind::General);
    Refusal::new(kind, String::from_utf8_lossy(reason))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was() {
        let mut kinds: Vec<RequestKind> =
            [Policy::Adaptive, Policy::WeightedRoundRobin, Policy::RoundRobin, Policy::Redundant].map(RequestKind::Udp).into();
        kinds.extend(
            ["example.org:443", "192.0.2.1:80", "[2001:db8::1]:8080"].map(|text| RequestKind::Tcp(text.parse().expect("a target"))),
        );
        for kind in kinds {
            for origin in [None, Some("10.0.1.1:8111".parse().expect("an address")), Some("[fd00::1]:1".parse().expect("an address"))] {
                let request = Request { kind: kind.clone(), origin };
                let bytes = request.encode();
                assert_eq!(request_len(&bytes), Ok(bytes.len() - 2));
                assert_eq!(Request::decode(&bytes[2..]), Ok(request));
            }
        }
    }

    #[test]
    fn a_refusal_keeps_its_kind_and_reason() {
        let refusal = Refusal::new(RefusalKind::TimedOut, "no answer in 10 s");
        let bytes = encode_answer(&Err(refusal.clone()));
        assert_eq!(decode_refusal(bytes[0], &bytes[2..]), refusal);
        assert_eq!(encode_answer(&Ok(())), [0]);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(input: Vec<u8>) {
            let _ = Request::decode(&input);
        }
    }
}
