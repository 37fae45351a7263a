//! LANs and members as one TOML document: to be read, kept, edited, and brought into another store.
//!
//! Enters: the store ([`Accounts::export`](super::Accounts::export)), or a document. Leaves: the document, or what
//! [`import`](super::Accounts::import) changed. Always holds: an import adds and changes, and removes nothing; it is done whole or not at
//! all, and a second time it changes nothing. No key is in a document, nor what was used, nor invites.

mod export;
mod import;

use std::str::FromStr;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use shared::community::member::Name;
use thiserror::Error;

pub use self::import::{ImportError, Imported};
use super::written::WrittenLimits;

/// The LANs and members of a `reconst`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// [`VERSION`].
    version: u32,
    /// The LANs.
    #[serde(default)]
    lan: Vec<LanEntry>,
    /// The users.
    #[serde(default)]
    user: Vec<UserEntry>,
    /// The relays.
    #[serde(default)]
    relay: Vec<RelayEntry>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LanEntry {
    name: Name,
    number: u16,
    data_port: u16,
    /// What all its users may spend together.
    #[serde(default, skip_serializing_if = "is_none")]
    limits: WrittenLimits,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserEntry {
    name: Name,
    lan: Name,
    /// When the user was added, from which periods of days are counted; now, for a new one, if it is left out.
    added_at: Option<i64>,
    /// The user of another LAN whose account this one spends from.
    account: Option<UserOfLan>,
    /// What may be spent from the user's own account.
    #[serde(default, skip_serializing_if = "is_none")]
    limits: WrittenLimits,
    #[serde(default, rename = "certificate")]
    certificates: Vec<CertificateEntry>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RelayEntry {
    name: Name,
    lan: Name,
    added_at: Option<i64>,
    /// The user of the same LAN whose PC it is.
    owner: Option<Name>,
    #[serde(default, rename = "certificate")]
    certificates: Vec<CertificateEntry>,
}

/// A certificate that makes its holder the member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateEntry {
    issued_at: i64,
    expires_at: i64,
    der: Der,
}

/// A user of a LAN, as in `ann@elm`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct UserOfLan {
    name: Name,
    lan: Name,
}

/// A certificate's bytes, written in base64.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Der(Vec<u8>);

/// A text that is no such document.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// Not TOML, or a key missing, misspelt or of the wrong kind.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// Written by a later reconst.
    #[error("version {0} of the format is not known here: upgrade reconst")]
    Version(u32),
}

impl Document {
    /// The document's text.
    pub fn to_toml(&self) -> String {
        let body = toml::to_string(self).expect("names, numbers and texts are TOML");
        format!("{PREFACE}{body}")
    }
}

impl FromStr for Document {
    type Err = DocumentError;

    fn from_str(text: &str) -> Result<Self, DocumentError> {
        let document: Self = toml::from_str(text)?;
        if document.version == VERSION { Ok(document) } else { Err(DocumentError::Version(document.version)) }
    }
}

impl TryFrom<String> for UserOfLan {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts = text.split_once('@').and_then(|(name, lan)| Some(Self { name: name.parse().ok()?, lan: lan.parse().ok()? }));
        parts.ok_or_else(|| format!("`{}` is no user of a LAN: write it as in ann@elm", text.chars().take(140).collect::<String>()))
    }
}

impl From<UserOfLan> for String {
    fn from(user: UserOfLan) -> Self {
        super::registry::at(&user.name, &user.lan)
    }
}

impl TryFrom<String> for Der {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        STANDARD.decode(&text).map(Self).map_err(|error| format!("a certificate is not base64: {error}"))
    }
}

impl From<Der> for String {
    fn from(Der(bytes): Der) -> Self {
        STANDARD.encode(bytes)
    }
}

fn is_none(limits: &WrittenLimits) -> bool {
    *limits == WrittenLimits::default()
}

/// The only version so far.
const VERSION: u32 = 1;

/// What a reader should know.
const PREFACE: &str = "\
# LANs and members of a reconst, as `reconst export` writes and `reconst import` reads them. Times are seconds since 1970, UTC.
# Not in here: keys, what was used and lent, invites, and the audit log. Certificates serve under the authority that issued them alone.
";

#[cfg(test)]
mod tests;
