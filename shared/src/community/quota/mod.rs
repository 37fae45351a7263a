//! Quotas: what a user may spend, and has; and what users may spend together.
//!
//! Enters: the operator's [`Limits`], the time ([`WallClock`]), requests to move bytes. Leaves: grants, waits, refusals ([`Account`]). Always
//! holds: bytes are granted before they move, so that no quota is overspent, however many flows ask at once. Keeping what was spent is left to
//! the caller.

mod account;
mod clock;
mod earning;
mod limits;
mod period;
mod shares;
pub mod told;
mod turns;

pub use self::{
    account::{Account, Grant, Lease, Refused, Used, Whose},
    clock::WallClock,
    earning::{Earning, Percent, PercentError},
    limits::{AtLimit, Counts, CountsError, Limits, Quota, Way},
    period::{Length, Period, PeriodError, UnixSeconds, Zone},
    shares::Sharer,
};
