//! The sessions as an operator sees them, whole or a part at a time.

use std::{fmt, str::FromStr};

use serde::Serialize;
use shared::{
    community::{member::Name, quota::Used},
    ids::LanId,
    link::session::SessionHandle,
};

use super::Sessions;
use crate::accounts::parts::{Part, PlaceError};

/// A session's figures.
#[derive(Clone, Debug, Serialize)]
pub struct SessionReport {
    /// The user.
    pub user: String,
    /// The LAN.
    pub lan: LanId,
    /// Paths joined and in service.
    pub paths: usize,
    /// Flows open now.
    pub flows: usize,
    /// Bytes that the user's applications got, datagrams that may have been lost on the way included.
    pub down_bytes: u64,
    /// Bytes that the user's applications sent.
    pub up_bytes: u64,
}

/// Where a session stands among all: by LAN, by user, and by the number that was drawn for it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SessionPlace {
    lan: LanId,
    user: Name,
    incarnation: u64,
}

impl Sessions {
    /// The figures of each session.
    pub fn report(&self) -> Vec<SessionReport> {
        self.part(None, u32::MAX).items
    }

    /// A part of them: at most `limit` after that place.
    pub fn part(&self, after: Option<&SessionPlace>, limit: u32) -> Part<SessionReport, SessionPlace> {
        let after = after.map(SessionPlace::key);
        let sessions = self.inner.lock();
        let mut found: Vec<(Key<'_>, &SessionHandle)> = sessions
            .iter()
            .map(|((user, _), entry)| ((user.lan, &user.name, entry.incarnation), &entry.handle))
            .filter(|(key, _)| after.is_none_or(|after| *key > after))
            .collect();
        let wanted = (limit as usize).saturating_add(1);
        if found.len() > wanted {
            found.select_nth_unstable_by_key(wanted, |(key, _)| *key);
            found.truncate(wanted);
        }
        found.sort_unstable_by_key(|(key, _)| *key);
        let found: Vec<_> = found.into_iter().map(|(key, handle)| (SessionPlace::of(key), handle.clone())).collect();
        drop(sessions);
        Part::cut(found, limit, |(place, _)| place.clone()).map(|(place, handle)| SessionReport::new(place, &handle))
    }
}

type Key<'a> = (LanId, &'a Name, u64);

impl SessionPlace {
    fn of((lan, user, incarnation): Key<'_>) -> Self {
        Self { lan, user: user.clone(), incarnation }
    }

    fn key(&self) -> Key<'_> {
        (self.lan, &self.user, self.incarnation)
    }
}

impl SessionReport {
    fn new(place: SessionPlace, handle: &SessionHandle) -> Self {
        let payload = payload_of(handle);
        Self {
            user: place.user.into(),
            lan: place.lan,
            paths: handle.path_status().len(),
            flows: handle.open_flows(),
            down_bytes: payload.down,
            up_bytes: payload.up,
        }
    }
}

/// What a session's flows have moved, datagrams that may have been lost on the way included.
pub(super) fn payload_of(handle: &SessionHandle) -> Used {
    let counters = handle.counters();
    Used { up: counters.read_bytes + counters.received_parcel_bytes, down: counters.delivered_bytes + counters.sent_parcel_bytes }
}

impl fmt::Display for SessionPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{:x}", self.lan.0, self.user, self.incarnation)
    }
}

impl FromStr for SessionPlace {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let mut parts = text.splitn(3, '.');
        let mut next = || parts.next().ok_or(PlaceError);
        let (lan, user, incarnation) = (next()?, next()?, next()?);
        Ok(Self {
            lan: LanId(lan.parse().map_err(|_| PlaceError)?),
            user: user.parse().map_err(|_| PlaceError)?,
            incarnation: u64::from_str_radix(incarnation, 16).map_err(|_| PlaceError)?,
        })
    }
}
