//! Lists, a part at a time.
//!
//! Enters: where the part before ended, and how many are wanted. Leaves: those that follow, and where they end. Always holds: a part is read by
//! an index from where it begins, so that it costs what it holds, wherever in a list of whatever length; who is added or removed between two
//! parts takes nobody else out of the list, and puts nobody in twice.

use std::{fmt, str::FromStr};

use shared::community::member::Name;

use super::{Accounts, AccountsError, lan_accounts::LanKey};

/// A part of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part<T, P> {
    /// What it holds, in the list's order.
    pub items: Vec<T>,
    /// The place of its last item, which the next part is read after; none at the end of the list.
    pub next: Option<P>,
}

/// Where a member stands among those of its role: by LAN, in the order in which those were added, and by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MemberPlace {
    pub(super) lan: LanKey,
    pub(super) name: Name,
}

/// A text that is no place in a list.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("that is no place in this list: `after` is what the part before has as `next`")]
pub struct PlaceError;

/// Which members are wanted.
#[derive(Clone, Debug)]
pub struct Members<'a> {
    /// Those of this LAN, or of all.
    pub lan: Option<&'a Name>,
    /// Those after this place.
    pub after: Option<MemberPlace>,
    /// At most as many.
    pub limit: u32,
}

/// Which rows those are: after `from` and up to the LAN `to`.
pub(super) struct Rows {
    pub(super) from: (i64, String),
    pub(super) to: i64,
}

impl<T, P> Part<T, P> {
    /// A part without anything, and the end.
    pub fn empty() -> Self {
        Self { items: Vec::new(), next: None }
    }

    /// The part that `found` makes, which holds one more than the `limit` if the list goes on.
    pub fn cut(mut found: Vec<T>, limit: u32, place: impl Fn(&T) -> P) -> Self {
        let limit = limit as usize;
        let goes_on = found.len() > limit;
        found.truncate(limit);
        let next = found.last().filter(|_| goes_on).map(place);
        Self { items: found, next }
    }

    /// The part with what `map` makes of each item.
    pub fn map<U>(self, map: impl FnMut(T) -> U) -> Part<U, P> {
        Part { items: self.items.into_iter().map(map).collect(), next: self.next }
    }

    /// The part with other items in place of these, as many.
    pub(super) fn with<U>(self, items: Vec<U>) -> Part<U, P> {
        Part { items, next: self.next }
    }
}

/// All of a list, read part by part.
///
/// # Errors
/// If a part can't be read.
pub async fn whole<T, P>(read: impl AsyncFn(Option<P>) -> Result<Part<T, P>, AccountsError>) -> Result<Vec<T>, AccountsError> {
    let (mut items, mut after) = (Vec::new(), None);
    loop {
        let part = read(after).await?;
        items.extend(part.items);
        match part.next {
            Some(next) => after = Some(next),
            None => return Ok(items),
        }
    }
}

impl<'a> Members<'a> {
    /// A large part of the members of `lan`, or of all LANs.
    pub fn after(lan: Option<&'a Name>, after: Option<MemberPlace>) -> Self {
        Self { lan, after, limit: LARGE_PART }
    }
}

impl Accounts {
    /// The rows of those members; none if there is no such LAN.
    pub(super) async fn rows_of(&self, members: &Members<'_>) -> Result<Option<Rows>, AccountsError> {
        let from = members.after.as_ref().map(|place| (place.lan.0, place.name.to_string()));
        let Some(lan) = members.lan else { return Ok(Some(Rows { from: from.unwrap_or_default(), to: i64::MAX })) };
        let key: Option<i64> = sqlx::query_scalar("SELECT lan_key FROM lans WHERE name = $1 AND removed_at IS NULL")
            .bind(lan.as_str())
            .fetch_optional(&self.pool)
            .await?;
        Ok(key.map(|key| Rows { from: from.unwrap_or_default().max((key, String::new())), to: key }))
    }
}

impl fmt::Display for MemberPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.lan.0, self.name)
    }
}

impl FromStr for MemberPlace {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let (lan, name) = text.split_once('.').ok_or(PlaceError)?;
        Ok(Self { lan: LanKey(lan.parse().map_err(|_| PlaceError)?), name: name.parse().map_err(|_| PlaceError)? })
    }
}

/// Some 600 KB of users.
pub const LARGE_PART: u32 = 1000;
