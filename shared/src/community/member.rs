//! Members and how a certificate names them.
//!
//! A member's certificate holds one DNS name, `NAME.ROLE.lanID.tributary.internal`; `reconst`'s own holds
//! [`RECONST_NAME`]. `internal` is reserved for private use, so that no public authority ever signs one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::LanId;

/// The DNS name in `reconst`'s certificate, wherever it is reached.
pub const RECONST_NAME: &str = "reconst.tributary.internal";

/// What the names of all members end in.
const MEMBER_SUFFIX: &str = ".tributary.internal";

/// The name of a user, relay or LAN: 1 to 63 letters `a-z`, digits and inner hyphens.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// What a member may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Opens sessions.
    User,
    /// Lends lines.
    Relay,
}

impl Role {
    /// The program that such a member runs.
    pub fn program(self) -> &'static str {
        match self {
            Self::User => "proxy-local",
            Self::Relay => "peer-relay",
        }
    }
}

/// What a member's certificate says of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Identity {
    /// Unique among the members of this role in the LAN.
    pub name: Name,
    /// What it may do.
    pub role: Role,
    /// The LAN it belongs to.
    pub lan: LanId,
}

/// What tells a member's certificate from all others of its authority: the first bytes of the SHA-256 of its DER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CertificateMark(pub [u8; 8]);

impl CertificateMark {
    /// The mark of a certificate.
    pub fn of(certificate_der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate_der);
        Self(*digest.as_ref().first_chunk().expect("SHA-256 gives 32 bytes"))
    }
}

/// A text that names no member.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum MemberError {
    /// Not a name.
    #[error("`{0}` is not a name: use 1 to 63 letters a-z, digits and inner hyphens")]
    Name(String),
    /// Not the DNS name of a member.
    #[error("the certificate's name `{0}` is not that of a member")]
    Identity(String),
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = MemberError;

    fn from_str(text: &str) -> Result<Self, MemberError> {
        let is_valid = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if is_valid { Ok(Self(text.into())) } else { Err(MemberError::Name(text.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for Name {
    type Error = MemberError;

    fn try_from(text: String) -> Result<Self, MemberError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Relay => "relay",
        })
    }
}

impl Identity {
    /// The DNS name that stands for this member in its certificate.
    pub fn dns_name(&self) -> String {
        format!("{}.{}.lan{}{MEMBER_SUFFIX}", self.name, self.role, self.lan)
    }

    /// The member that a certificate's DNS name stands for.
    ///
    /// # Errors
    /// [`MemberError::Identity`] if the name is none that [`Identity::dns_name`] makes.
    pub fn from_dns_name(dns_name: &str) -> Result<Self, MemberError> {
        let parse = || {
            let mut labels = dns_name.strip_suffix(MEMBER_SUFFIX)?.split('.');
            let name = labels.next()?.parse().ok()?;
            let role = match labels.next()? {
                "user" => Role::User,
                "relay" => Role::Relay,
                _ => return None,
            };
            let lan = LanId(labels.next()?.strip_prefix("lan")?.parse().ok()?);
            let identity = Self { name, role, lan };
            (identity.dns_name() == dns_name).then_some(identity)
        };
        parse().ok_or_else(|| MemberError::Identity(dns_name.chars().take(80).collect()))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of LAN {}", self.role, self.name, self.lan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_dns_name() {
        let identity = Identity { name: "ann-2".parse().expect("a name"), role: Role::Relay, lan: LanId(15) };
        assert_eq!(identity.dns_name(), "ann-2.relay.lan15.tributary.internal");
        assert_eq!(Identity::from_dns_name(&identity.dns_name()), Ok(identity));
    }

    #[test]
    fn names_that_no_member_has_are_refused() {
        for name in
            ["reconst.tributary.internal", "a.user.lan015.tributary.internal", "a.b.user.lan1.tributary.internal", "a.user.lan1", ""]
        {
            assert!(Identity::from_dns_name(name).is_err(), "{name}");
        }
        for name in ["", "-a", "a-", "Ann", "a.b", "ä"] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
    }
}
