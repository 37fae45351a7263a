//! The invite: a link that makes whoever uses it first a member.
//!
//! Enters and leaves: the link's text, `tributary://HOST:PORT[,HOST:PORT…]/ROLE/CODE`. The code is base64url of the LAN (2 bytes), the
//! invite's number (4), the authority's [`Fingerprint`] (32), the [`InviteSecret`] (16) and the first 3 bytes of the SHA-256 of all that,
//! so that a link copied badly is known as such. Always holds: a secret prints as `***`, and `reconst` keeps its hash alone.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use thiserror::Error;

use super::member::Role;
use crate::{
    ids::LanId,
    target::{Target, TargetError},
};

/// What an invite's link says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invite {
    /// Where `reconst` is reached; 1 to [`TARGETS_MAX`].
    pub reconst: Vec<Target>,
    /// What the member will be.
    pub role: Role,
    /// The LAN it will belong to.
    pub lan: LanId,
    /// The invite's number at `reconst`.
    pub number: u32,
    /// Of the authority's certificate.
    pub fingerprint: Fingerprint,
    /// What the first who shows it becomes a member with.
    pub secret: InviteSecret,
}

/// The SHA-256 of a certificate, DER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Fingerprint(pub [u8; 32]);

/// 128 random bits. Prints as `***`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InviteSecret(pub [u8; 16]);

/// A text that is no invite's link.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum InviteError {
    /// Something else.
    #[error("that is not an invite: it begins with {SCHEME}, as `reconst user invite` and `reconst relay invite` print it")]
    NotALink,
    /// Copied in part, or altered.
    #[error("the invite is damaged: copy the whole link again")]
    Damaged,
    /// No address of `reconst`.
    #[error("the invite is damaged: {0}; copy the whole link again")]
    Target(#[from] TargetError),
}

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate_der: &[u8]) -> Self {
        Self(digest(&SHA256, certificate_der).as_ref().try_into().expect("SHA-256 gives 32 bytes"))
    }
}

impl InviteSecret {
    /// What `reconst` keeps of the secret.
    pub fn hash(&self) -> [u8; 32] {
        digest(&SHA256, &[HASH_CONTEXT, &self.0[..]].concat()).as_ref().try_into().expect("SHA-256 gives 32 bytes")
    }

    /// Whether this is the secret that `hash` was made of; takes the same time whatever differs.
    pub fn fits(&self, hash: &[u8; 32]) -> bool {
        self.hash().iter().zip(hash).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

impl fmt::Debug for InviteSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Invite {
    /// The link, secret included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut code = Vec::with_capacity(CODE_BYTES);
        code.extend(self.lan.0.to_be_bytes());
        code.extend(self.number.to_be_bytes());
        code.extend(self.fingerprint.0);
        code.extend(self.secret.0);
        code.extend(checksum(&code));
        let targets = self.reconst.iter().map(Target::to_string).collect::<Vec<_>>().join(",");
        write!(f, "{SCHEME}{targets}/{}/{}", self.role, URL_SAFE_NO_PAD.encode(code))
    }
}

impl FromStr for Invite {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let text = text.trim();
        if text.len() > LINK_BYTES_MAX {
            return Err(InviteError::NotALink);
        }
        let mut parts = text.strip_prefix(SCHEME).ok_or(InviteError::NotALink)?.split('/');
        let (targets, role, code) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let (Some(role), Some(code), None) = (role, code, parts.next()) else { return Err(InviteError::Damaged) };
        let role = match role {
            "user" => Role::User,
            "relay" => Role::Relay,
            _ => return Err(InviteError::Damaged),
        };
        let code = URL_SAFE_NO_PAD.decode(code).map_err(|_| InviteError::Damaged)?;
        let code: [u8; CODE_BYTES] = code.try_into().map_err(|_| InviteError::Damaged)?;
        let (body, check) = code.split_at(CODE_BYTES - CHECKSUM_BYTES);
        if check != checksum(body) {
            return Err(InviteError::Damaged);
        }
        let reconst = targets.split(',').map(str::parse).collect::<Result<Vec<Target>, _>>()?;
        if reconst.len() > TARGETS_MAX {
            return Err(InviteError::Damaged);
        }
        let field = |from: usize, len: usize| &body[from..from + len];
        Ok(Self {
            reconst,
            role,
            lan: LanId(u16::from_be_bytes(field(0, 2).try_into().expect("2 bytes"))),
            number: u32::from_be_bytes(field(2, 4).try_into().expect("4 bytes")),
            fingerprint: Fingerprint(field(6, 32).try_into().expect("32 bytes")),
            secret: InviteSecret(field(38, 16).try_into().expect("16 bytes")),
        })
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    digest(&SHA256, body).as_ref()[..CHECKSUM_BYTES].try_into().expect("SHA-256 gives more")
}

/// What a link begins with.
pub const SCHEME: &str = "tributary://";

/// The most addresses of `reconst` in a link and in a profile: four servers with two families each.
pub const TARGETS_MAX: usize = 8;

/// Three: the code is then 76 characters without padding, and one bad link in 16 million passes for a good one.
const CHECKSUM_BYTES: usize = 3;
const CODE_BYTES: usize = 2 + 4 + 32 + 16 + CHECKSUM_BYTES;

/// [`TARGETS_MAX`] of the longest host names, and the code.
const LINK_BYTES_MAX: usize = 2300;

/// Told apart from every other hash of 16 bytes.
const HASH_CONTEXT: &[u8] = b"tributary invite 1\0";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_link_survives_its_text(lan: u16, number: u32, fingerprint: [u8; 32], secret: [u8; 16], is_relay: bool) {
            let invite = Invite {
                reconst: vec!["isp.example:10000".parse().expect("a target"), "[2001:db8::1]:10000".parse().expect("a target")],
                role: if is_relay { Role::Relay } else { Role::User },
                lan: LanId(lan),
                number,
                fingerprint: Fingerprint(fingerprint),
                secret: InviteSecret(secret),
            };
            prop_assert_eq!(format!(" {invite}\n").parse::<Invite>(), Ok(invite));
        }

        #[test]
        fn no_text_panics(text in ".{0,200}", code in "[A-Za-z0-9_-]{70,80}") {
            let _ = text.parse::<Invite>();
            let _ = format!("{SCHEME}isp.example:10000/user/{code}").parse::<Invite>();
        }
    }

    #[test]
    fn a_link_copied_badly_is_known_as_such() {
        let link = sample().to_string();
        assert_eq!(link.parse::<Invite>(), Ok(sample()));
        assert_eq!(link[..link.len() - 1].parse::<Invite>(), Err(InviteError::Damaged));
        for index in link.rfind('/').expect("a code") + 1..link.len() {
            let mut altered = link.clone().into_bytes();
            altered[index] = if altered[index] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).expect("ASCII");
            assert_eq!(altered.parse::<Invite>(), Err(InviteError::Damaged), "{altered}");
        }
        assert_eq!("https://isp.example/".parse::<Invite>(), Err(InviteError::NotALink));
    }

    #[test]
    fn only_the_secret_itself_fits_its_hash_and_nothing_prints_it() {
        let secret = sample().secret;
        assert!(secret.fits(&secret.hash()));
        assert!(!InviteSecret([8; 16]).fits(&secret.hash()));
        assert!(format!("{:?}", sample()).contains("***"));
    }

    fn sample() -> Invite {
        Invite {
            reconst: vec!["isp.example:10000".parse().expect("a target")],
            role: Role::User,
            lan: LanId(15),
            number: 7,
            fingerprint: Fingerprint([3; 32]),
            secret: InviteSecret([9; 16]),
        }
    }
}
