//! The sessions as an operator sees them, whole or a part at a time.

use std::{fmt, str::FromStr};

use serde::Serialize;
use shared::{
    community::{member::Name, quota::Used},
    ids::LanId,
    link::session::SessionHandle,
};

use super::{Entry, Sessions};
use crate::accounts::parts::{Part, PlaceError};

/// A session's figures.
#[derive(Clone, Debug, Serialize)]
pub struct SessionReport {
    /// The user.
    pub user: String,
    /// The LAN's number.
    pub lan: LanId,
    /// The LAN's name.
    pub lan_name: String,
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
        self.part(None, None, u32::MAX).items
    }

    /// A part of them, of those of `lan` if it is given: at most `limit` after that place.
    pub fn part(&self, lan: Option<&Name>, after: Option<&SessionPlace>, limit: u32) -> Part<SessionReport, SessionPlace> {
        let after = after.map(SessionPlace::key);
        let sessions = self.inner.lock();
        let mut found: Vec<(Key<'_>, &Entry)> = sessions
            .iter()
            .filter(|(_, entry)| lan.is_none_or(|lan| entry.lan_name == *lan))
            .map(|((user, _), entry)| ((user.lan, &user.name, entry.incarnation), entry))
            .filter(|(key, _)| after.is_none_or(|after| *key > after))
            .collect();
        let wanted = (limit as usize).saturating_add(1);
        if found.len() > wanted {
            found.select_nth_unstable_by_key(wanted, |(key, _)| *key);
            found.truncate(wanted);
        }
        found.sort_unstable_by_key(|(key, _)| *key);
        let found: Vec<_> = found.into_iter().map(|(key, entry)| (SessionPlace::of(key), entry.clone())).collect();
        drop(sessions);
        Part::cut(found, limit, |(place, _)| place.clone()).map(|(place, entry)| SessionReport::new(place, &entry))
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
    fn new(place: SessionPlace, entry: &Entry) -> Self {
        let (handle, payload) = (&entry.handle, payload_of(&entry.handle));
        Self {
            user: place.user.into(),
            lan: place.lan,
            lan_name: entry.lan_name.to_string(),
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
