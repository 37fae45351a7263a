//! What a user is told of its quotas: how much is used, and until when.
//!
//! ```text
//! quotas = any number of: whose (1: 0 the user's, 1 the LAN's), used, quota, resets at, throttle (varints)
//! ```
//! Bytes; seconds since 1970, UTC; the rate beyond the quota in bits per second, 0 if flows are refused.

use bytes::BufMut;

use super::{UnixSeconds, account::Whose};
use crate::wire::{self, WireError};

/// A quota and its use, as far as it is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ToldQuota {
    /// Whose it is.
    pub whose: Whose,
    /// Bytes that are used of it.
    pub used_bytes: u64,
    /// Bytes that may be used in the period, at least 1.
    pub quota_bytes: u64,
    /// When the count begins anew.
    pub resets_at: UnixSeconds,
    /// The rate in bits per second once it is used up; none if flows are refused.
    pub throttle: Option<u64>,
}

impl ToldQuota {
    /// How much is used, in per cent rounded down.
    pub fn percent(&self) -> u64 {
        let percent = u128::from(self.used_bytes) * 100 / u128::from(self.quota_bytes.max(1));
        u64::try_from(percent).unwrap_or(u64::MAX)
    }

    /// Whether who was told `before` should be told this.
    pub fn is_news_after(&self, before: &Self) -> bool {
        self.percent() != before.percent() || Self { used_bytes: before.used_bytes, ..*self } != *before
    }

    /// Whether it is time to warn.
    pub fn is_beyond_warning(&self) -> bool {
        self.percent() >= super::account::WARNED_AT_PERCENT
    }
}

/// The bytes of quotas.
pub fn encode(quotas: &[ToldQuota]) -> Vec<u8> {
    let mut out = Vec::new();
    for quota in quotas {
        out.put_u8(u8::from(quota.whose == Whose::Lan));
        let resets_at = u64::try_from(quota.resets_at.0).unwrap_or(0);
        for value in [quota.used_bytes, quota.quota_bytes, resets_at, quota.throttle.unwrap_or(0)] {
            wire::put_varint(&mut out, value.min(VARINT_MAX));
        }
    }
    out
}

/// The quotas of bytes that [`encode`] made.
///
/// # Errors
/// If they were made by something else.
pub fn decode(mut bytes: &[u8]) -> Result<Vec<ToldQuota>, WireError> {
    let mut quotas = Vec::new();
    while !bytes.is_empty() {
        if quotas.len() == QUOTAS_MAX {
            return Err(WireError::Value("number of quotas"));
        }
        let whose = match wire::take_u8(&mut bytes)? {
            0 => Whose::User,
            1 => Whose::Lan,
            _ => return Err(WireError::Value("whose quota")),
        };
        let mut next = || wire::take_varint(&mut bytes);
        let (used_bytes, quota_bytes, resets_at, throttle) = (next()?, next()?, next()?, next()?);
        if quota_bytes == 0 {
            return Err(WireError::Value("quota"));
        }
        let resets_at = UnixSeconds(i64::try_from(resets_at).map_err(|_| WireError::Value("time"))?);
        quotas.push(ToldQuota { whose, used_bytes, quota_bytes, resets_at, throttle: (throttle > 0).then_some(throttle) });
    }
    Ok(quotas)
}

/// The user's and the LAN's, and room for more kinds.
const QUOTAS_MAX: usize = 8;

/// RFC 9000 §16.
const VARINT_MAX: u64 = (1 << 62) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read() {
        let user =
            ToldQuota { whose: Whose::User, used_bytes: 83, quota_bytes: 100, resets_at: UnixSeconds(1_796_083_200), throttle: None };
        let lan = ToldQuota { whose: Whose::Lan, used_bytes: u64::MAX, throttle: Some(64_000), ..user };
        let read = decode(&encode(&[user, lan])).expect("what was encoded");
        assert_eq!(read, [user, ToldQuota { used_bytes: VARINT_MAX, ..lan }]);
        assert_eq!(decode(&[]).expect("nothing"), []);
        let bytes = encode(&[user]);
        for cut in 1..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(decode(&encode(&[user; 9])).is_err());
    }

    #[test]
    fn only_a_per_cent_more_is_news() {
        let before = ToldQuota { whose: Whose::User, used_bytes: 7900, quota_bytes: 10_000, resets_at: UnixSeconds(5), throttle: None };
        assert!(!ToldQuota { used_bytes: 7999, ..before }.is_news_after(&before));
        let now = ToldQuota { used_bytes: 8000, ..before };
        assert!(now.is_news_after(&before) && now.is_beyond_warning() && !before.is_beyond_warning());
        assert!(ToldQuota { resets_at: UnixSeconds(6), ..before }.is_news_after(&before));
    }
}
