//! A member's certificate, renewed while it is in use.
//!
//! Enters: the profile, its file, and connections to `reconst` that stand. Leaves: in time, a new key and certificate, in the file and in
//! use for every connection and signature from then on. Always holds: the key never leaves this PC; connections that stand go on; the
//! certificate before serves to its end, so that nothing is lost if the file can't be written or the answer does not arrive.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use quinn::Connection;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer, time::ASN1Time};

use super::{
    credentials::Credentials,
    enrol::{self, EnrolError},
    key::{NewKey, pem},
    tls,
};
use crate::{
    community::{enrol::Title, profile::Profile},
    service::{Exit, Failure, ProfilePlace},
};

/// The connections to `reconst` that stand, authenticated as the member; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    standing: watch::Sender<Vec<Connection>>,
}

/// A connection's place among those that stand; it ends with this.
#[derive(Debug)]
pub struct Standing {
    connections: Connections,
    id: usize,
}

/// Renews one member's certificate.
#[derive(Debug)]
pub struct Renewal {
    /// The profile as it is now.
    pub profile: Profile,
    /// Its file; `None` keeps what is renewed in memory alone.
    pub file: Option<PathBuf>,
    /// The part of its life that the certificate has left when it is renewed, in per cent, 1 to 90. With little a PC that is off for long
    /// has none any more when it is on again, with much the accounts fill for nothing. Default [`LEFT_PERCENT`].
    pub left_percent: u8,
    /// What it is used by.
    pub credentials: Credentials,
    /// Where it is asked for.
    pub connections: Connections,
}

/// A third is left: with two years of life, eight months for a PC that is off, or a `reconst` that is.
pub const LEFT_PERCENT: u8 = 33;

/// The part of its life in per cent that a person has set, or [`LEFT_PERCENT`].
///
/// # Errors
/// If it is not from 1 to 90.
pub fn left_percent(setting: Option<u8>) -> Result<u8, Failure> {
    match setting.unwrap_or(LEFT_PERCENT) {
        percent @ 1..=90 => Ok(percent),
        _ => Err(Failure::config("renew-left is a whole number of per cent from 1 to 90")),
    }
}

impl Connections {
    /// Notes that `connection`, whose first stream is in use or over, stands until the result is dropped.
    pub fn enter(&self, connection: Connection) -> Standing {
        let id = connection.stable_id();
        self.standing.send_modify(|standing| standing.push(connection));
        Standing { connections: self.clone(), id }
    }

    /// Waits for a connection that stands: another with each turn, since one may be over a line that is silent.
    async fn next(&self, turn: usize) -> Connection {
        let mut standing = self.standing.subscribe();
        loop {
            let open: Vec<_> =
                standing.borrow_and_update().iter().filter(|connection| connection.close_reason().is_none()).cloned().collect();
            if !open.is_empty() {
                return open[turn % open.len()].clone();
            }
            let _ = timeout(LOOK_INTERVAL, standing.changed()).await;
        }
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.connections.standing.send_modify(|standing| standing.retain(|connection| connection.stable_id() != self.id));
    }
}

impl Renewal {
    /// Renews in time, until the future is dropped.
    pub async fn run(mut self) {
        let (mut pause, mut is_kept) = (RETRY_MIN, true);
        for turn in 0.. {
            let Some(validity) = Validity::of(&self.profile) else {
                tracing::warn!("the certificate's time can't be read: it is not renewed");
                return std::future::pending().await;
            };
            if is_kept {
                sleep_until(validity.renewed_from(self.left_percent)).await;
                let connection = self.connections.next(turn).await;
                if let Err(error) = self.renew(&connection).await {
                    tracing::warn!(until = %date(validity.not_after), "the certificate is not renewed yet: {error}");
                    sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                    continue;
                }
            }
            is_kept = self.keep();
            if is_kept {
                pause = RETRY_MIN;
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }

    async fn renew(&mut self, connection: &Connection) -> Result<(), EnrolError> {
        let key = NewKey::generate().map_err(|_| EnrolError::Own("the system gives no randomness for a key".into()))?;
        let issued = enrol::request(connection, Title::Certificate, &key).await?;
        if issued.identity != self.profile.identity {
            return Err(EnrolError::Own(format!("reconst renewed for {}, which is somebody else", issued.identity)));
        }
        let profile = Profile {
            certificate_pem: pem("CERTIFICATE", &issued.certificate),
            key_pem: key.to_pem(),
            reconst: if issued.reconst.is_empty() { self.profile.reconst.clone() } else { issued.reconst },
            ..self.profile.clone()
        };
        self.credentials.replace(&profile).map_err(|error| EnrolError::Own(error.to_string()))?;
        self.profile = profile;
        let until = Validity::of(&self.profile).map(|validity| date(validity.not_after));
        tracing::info!(until, "the certificate of {} was renewed", self.profile.identity);
        Ok(())
    }

    /// Whether the profile is in its file now.
    fn keep(&self) -> bool {
        let Some(file) = &self.file else { return true };
        let kept = keep(file, &self.profile);
        if let Err(failure) = &kept {
            tracing::error!(%failure, "the renewed certificate is in use but not kept: after a restart the one before is used, to its end");
        }
        kept.is_ok()
    }
}

/// In the file that a link leads to, not in the link's place.
fn keep(file: &Path, profile: &Profile) -> Result<(), Failure> {
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    ProfilePlace::reserve(&file, true)?.fill(profile)
}

/// Whether the certificate of `profile`, read for `program`, is not over.
///
/// # Errors
/// If it is: what to do then.
pub fn check_time(profile: &Profile) -> Result<(), Failure> {
    let Some(validity) = Validity::of(profile) else { return Ok(()) };
    if now() < validity.not_after {
        return Ok(());
    }
    let (name, role, lan) = (&profile.identity.name, profile.identity.role, &profile.lan_name);
    Err(Failure::new(
        Exit::Data,
        format!(
            "the certificate of {} ended on {}: this PC was off while it was due for renewal, or its clock is wrong. Ask reconst's operator \
             for `reconst {role} invite {name} --lan {lan} --again`, then run `{} join LINK --force`",
            profile.identity,
            date(validity.not_after),
            role.program()
        ),
    ))
}

/// When a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Validity {
    not_before: i64,
    not_after: i64,
}

impl Validity {
    fn of(profile: &Profile) -> Option<Self> {
        let certificate = tls::certificate("member's certificate", &profile.certificate_pem).ok()?;
        let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
        let validity = parsed.validity();
        Some(Self { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() })
    }

    fn renewed_from(self, left_percent: u8) -> i64 {
        self.not_after - self.not_after.saturating_sub(self.not_before).saturating_mul(left_percent.into()) / 100
    }
}

/// By the PC's clock, which may be set and which goes on while the PC sleeps.
async fn sleep_until(at: i64) {
    while now() < at {
        let left = u64::try_from(at - now()).unwrap_or_default();
        sleep(Duration::from_secs(left).min(LOOK_INTERVAL)).await;
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn date(unix_seconds: i64) -> String {
    ASN1Time::from_timestamp(unix_seconds).map_or_else(|_| unix_seconds.to_string(), |time| time.to_string())
}

/// How often the clock is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// The pause after an attempt that failed, doubled with each.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_so_much_of_its_life_is_left() {
        let validity = Validity { not_before: 1_000, not_after: 4_000 };
        assert_eq!((validity.renewed_from(LEFT_PERCENT), validity.renewed_from(90)), (3_010, 1_300));
    }
}
