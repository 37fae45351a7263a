//! The profile: the one file that makes a PC a member.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::member::{Identity, Name, Role};
use crate::{
    ids::LanId,
    target::{Target, TargetError},
};

/// A member's name, keys and the way to its `reconst`. Prints without its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Profile {
    /// The member this file makes of whoever holds it.
    pub identity: Identity,
    /// The LAN's name, for people.
    pub lan_name: Name,
    /// Where relays reach `reconst`'s login port; never empty.
    pub reconst: Vec<Target>,
    /// The member's certificate, PEM.
    pub certificate_pem: String,
    /// The certificate's private key, PKCS#8 PEM. A secret.
    pub key_pem: String,
    /// The certificate of the authority that signed both ends' certificates, PEM.
    pub authority_pem: String,
}

/// A file that is no profile.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// Not TOML, a key missing, misspelt or of the wrong kind.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// An address of `reconst` that is none.
    #[error("in `reconst`: {0}")]
    Reconst(#[from] TargetError),
    /// No address of `reconst`.
    #[error("`reconst` lists no address")]
    NoReconst,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ProfileFile {
    role: Role,
    name: Name,
    lan: Name,
    lan_id: LanId,
    reconst: Vec<String>,
    certificate: String,
    key: String,
    authority: String,
}

impl Profile {
    /// Reads a profile from the text of its file.
    ///
    /// # Errors
    /// If the text is not TOML with exactly a profile's keys, or a value can't be what its key says. The certificates are
    /// looked at when they are first used.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let file: ProfileFile = toml::from_str(text)?;
        if file.reconst.is_empty() {
            return Err(ProfileError::NoReconst);
        }
        Ok(Self {
            identity: Identity { name: file.name, role: file.role, lan: file.lan_id },
            lan_name: file.lan,
            reconst: file.reconst.iter().map(|address| address.parse()).collect::<Result<_, _>>()?,
            certificate_pem: file.certificate,
            key_pem: file.key,
            authority_pem: file.authority,
        })
    }

    /// The text of the profile's file, secret key included: for a file of mode 0600 alone.
    pub fn to_toml(&self) -> String {
        let file = ProfileFile {
            role: self.identity.role,
            name: self.identity.name.clone(),
            lan: self.lan_name.clone(),
            lan_id: self.identity.lan,
            reconst: self.reconst.iter().map(Target::to_string).collect(),
            certificate: self.certificate_pem.clone(),
            key: self.key_pem.clone(),
            authority: self.authority_pem.clone(),
        };
        toml::to_string(&file).expect("strings and numbers are valid TOML")
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("identity", &self.identity)
            .field("reconst", &self.reconst)
            .field("key_pem", &"***")
            .finish_non_exhaustive()
    }
}
