//! What a PC that becomes a member says to `reconst`, and what it gets.
//!
//! An enrolment is one request and one reply on a stream of a QUIC connection: of one made for it ([`crate::link::tls::ENROL_ALPN`]), with
//! an invite; or of a path's or login's, to renew the certificate that the connection was authenticated with. Each is a length (2 bytes)
//! and fields. The request shows that its sender holds the new key by signing the connection's keying material. Always holds: nothing is
//! longer than [`MESSAGE_MAX`].

use bytes::{Buf, BufMut};

use super::{
    invite::{InviteSecret, TARGETS_MAX},
    member::{Identity, Name, Role},
};
use crate::{
    ids::LanId,
    target::Target,
    wire::{self, WireError},
};

/// The version of the enrolment that this code speaks.
pub const VERSION: u8 = 1;

/// The longest message in bytes, without its length: a certificate, and [`TARGETS_MAX`] of the longest host names.
pub const MESSAGE_MAX: usize = 4096;

/// What the keying material of a connection is exported under (RFC 8446 §7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-tributary-enrol";

/// A connection's keying material.
pub type KeyingMaterial = [u8; 32];

/// A request for a certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnrolRequest {
    /// What entitles the sender to it.
    pub title: Title,
    /// The key that the certificate is for, Ed25519.
    pub public_key: [u8; 32],
    /// The key over [`signed_request`].
    pub signature: [u8; 64],
}

/// What entitles to a certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Title {
    /// An invite.
    Invite {
        /// Its number.
        number: u32,
        /// Its secret.
        secret: InviteSecret,
    },
    /// The certificate that the connection was authenticated with.
    Certificate,
}

/// The answer to an [`EnrolRequest`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EnrolReply {
    /// All that a profile needs beside the key and the authority's certificate.
    Issued(Issued),
    /// No, and asking again is of no use. A sentence for a person, at most [`REASON_MAX`] bytes.
    Refused(String),
    /// Not now: ask again later. A sentence likewise.
    Busy(String),
}

/// A certificate with what goes along.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Issued {
    /// The member.
    pub identity: Identity,
    /// The LAN's name.
    pub lan_name: Name,
    /// Where `reconst`'s login port is reached, at most [`TARGETS_MAX`]; none if that is as before.
    pub reconst: Vec<Target>,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
}

/// The longest reason, in bytes.
pub const REASON_MAX: usize = 400;

/// The longest certificate, in bytes: as in the LAN's messages.
pub const CERTIFICATE_MAX: usize = super::hello::CERTIFICATE_MAX_BYTES;

/// The bytes that a request's signature covers.
pub fn signed_request(material: &KeyingMaterial, public_key: &[u8; 32]) -> Vec<u8> {
    [SIGNED_CONTEXT, material, public_key].concat()
}

/// The length of the message that begins with `first`.
///
/// # Errors
/// If it is longer than [`MESSAGE_MAX`].
pub fn message_len(first: [u8; 2]) -> Result<usize, WireError> {
    let len = usize::from(u16::from_be_bytes(first));
    if len > MESSAGE_MAX { Err(WireError::Value("length")) } else { Ok(len) }
}

impl EnrolRequest {
    /// The message, its length in front.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match &self.title {
            Title::Invite { number, secret } => {
                out.put_u8(INVITE);
                out.put_u32(*number);
                out.put_slice(&secret.0);
            }
            Title::Certificate => out.put_u8(CERTIFICATE),
        }
        out.put_slice(&self.public_key);
        out.put_slice(&self.signature);
        with_length(out)
    }

    /// Reads the message without its length.
    ///
    /// # Errors
    /// If it ends early or holds what can't be.
    pub fn decode(mut input: &[u8]) -> Result<Self, WireError> {
        let input = &mut input;
        if wire::take_u8(input)? != VERSION {
            return Err(WireError::Value("version"));
        }
        let title = match wire::take_u8(input)? {
            INVITE => {
                Title::Invite { number: u32::from_be_bytes(wire::take_array(input)?), secret: InviteSecret(wire::take_array(input)?) }
            }
            CERTIFICATE => Title::Certificate,
            _ => return Err(WireError::Value("title")),
        };
        Ok(Self { title, public_key: wire::take_array(input)?, signature: wire::take_array(input)? })
    }
}

impl EnrolReply {
    /// The message, its length in front. A reason is cut to what fits.
    ///
    /// # Panics
    /// If the certificate is longer than [`CERTIFICATE_MAX`] or there are more than [`TARGETS_MAX`] targets.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Issued(issued) => {
                assert!(issued.certificate.len() <= CERTIFICATE_MAX && issued.reconst.len() <= TARGETS_MAX, "as reconst makes them");
                out.put_u8(ISSUED);
                out.put_u8(if issued.identity.role == Role::User { USER } else { RELAY });
                wire::put_bytes(&mut out, issued.identity.name.as_str().as_bytes());
                out.put_u16(issued.identity.lan.0);
                wire::put_bytes(&mut out, issued.lan_name.as_str().as_bytes());
                out.put_u8(issued.reconst.len() as u8);
                issued.reconst.iter().for_each(|target| target.encode(&mut out));
                wire::put_bytes(&mut out, &issued.certificate);
            }
            Self::Refused(reason) | Self::Busy(reason) => {
                out.put_u8(if matches!(self, Self::Refused(_)) { REFUSED } else { BUSY });
                wire::put_bytes(&mut out, &reason.as_bytes()[..reason.floor_char_boundary(REASON_MAX)]);
            }
        }
        with_length(out)
    }

    /// Reads the message without its length.
    ///
    /// # Errors
    /// If it ends early or holds what can't be.
    pub fn decode(mut input: &[u8]) -> Result<Self, WireError> {
        let input = &mut input;
        match wire::take_u8(input)? {
            ISSUED => Ok(Self::Issued(take_issued(input)?)),
            REFUSED => Ok(Self::Refused(take_reason(input)?)),
            BUSY => Ok(Self::Busy(take_reason(input)?)),
            _ => Err(WireError::Value("reply")),
        }
    }
}

fn take_issued(input: &mut impl Buf) -> Result<Issued, WireError> {
    let role = match wire::take_u8(input)? {
        USER => Role::User,
        RELAY => Role::Relay,
        _ => return Err(WireError::Value("role")),
    };
    let name = take_name(input)?;
    let identity = Identity { name, role, lan: LanId(wire::take_u16(input)?) };
    let lan_name = take_name(input)?;
    let count = usize::from(wire::take_u8(input)?);
    if count > TARGETS_MAX {
        return Err(WireError::Value("number of addresses"));
    }
    let reconst = (0..count).map(|_| Target::decode(input)).collect::<Result<_, _>>()?;
    Ok(Issued { identity, lan_name, reconst, certificate: wire::take_bytes(input, CERTIFICATE_MAX, "certificate")? })
}

fn take_name(input: &mut impl Buf) -> Result<Name, WireError> {
    let name = String::from_utf8(wire::take_bytes(input, 63, "name")?).map_err(|_| WireError::Value("name"))?;
    name.parse().map_err(|_| WireError::Value("name"))
}

fn take_reason(input: &mut impl Buf) -> Result<String, WireError> {
    String::from_utf8(wire::take_bytes(input, REASON_MAX, "reason")?).map_err(|_| WireError::Value("reason"))
}

fn with_length(message: Vec<u8>) -> Vec<u8> {
    debug_assert!(message.len() <= MESSAGE_MAX, "the fields' limits add up to less");
    [&(message.len() as u16).to_be_bytes()[..], &message].concat()
}

const INVITE: u8 = 1;
const CERTIFICATE: u8 = 2;
const ISSUED: u8 = 0;
const REFUSED: u8 = 1;
const BUSY: u8 = 2;
const USER: u8 = 1;
const RELAY: u8 = 2;

/// Told apart from everything else that a key signs.
const SIGNED_CONTEXT: &[u8] = b"tributary enrolment 1\0";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_request_comes_back_as_it_was(number: u32, secret: [u8; 16], public_key: [u8; 32], signature: [u8; 64], has_invite: bool) {
            let title = if has_invite { Title::Invite { number, secret: InviteSecret(secret) } } else { Title::Certificate };
            let request = EnrolRequest { title, public_key, signature };
            prop_assert_eq!(EnrolRequest::decode(body(&request.encode())), Ok(request));
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..4) {
            let _ = EnrolRequest::decode(&bytes);
            let _ = EnrolReply::decode(&[&[kind], &bytes[..]].concat());
        }
    }

    #[test]
    fn the_longest_reply_fits_and_comes_back_as_it_was() {
        let name: Name = "a".repeat(63).parse().expect("a name");
        let host = [&"b".repeat(63)[..]; 3].join(".") + "." + &"c".repeat(61);
        let target: Target = format!("{host}:65535").parse().expect("a target");
        let issued = Issued {
            identity: Identity { name: name.clone(), role: Role::Relay, lan: LanId(15) },
            lan_name: name,
            reconst: vec![target; TARGETS_MAX],
            certificate: vec![7; CERTIFICATE_MAX],
        };
        let reply = EnrolReply::Issued(issued);
        let message = reply.encode();
        assert_eq!(message_len([message[0], message[1]]), Ok(message.len() - 2));
        assert_eq!(EnrolReply::decode(body(&message)), Ok(reply));
    }

    #[test]
    fn a_reason_is_cut_to_what_fits() {
        let reply = EnrolReply::Refused("ü".repeat(REASON_MAX));
        assert_eq!(EnrolReply::decode(body(&reply.encode())), Ok(EnrolReply::Refused("ü".repeat(REASON_MAX / 2))));
    }

    fn body(message: &[u8]) -> &[u8] {
        &message[2..]
    }
}
