//! The core that both ends of a Tributary session share.
//!
//! * [`ids`], [`units`], [`target`] and [`wire`]: the words of the protocol.
//! * [`transfer`]: bytes in, bytes out. Cuts flows into chunks, schedules them over paths, recovers what is lost, puts
//!   them in order.
//! * [`community`]: who is here and may do what: members, profiles, announcements, the roster.
//! * [`share`]: what the owner of a line lets others have of it.
//! * [`link`] (feature `link`): the thin drivers over tokio, quinn and rustls.
//! * [`service`] (feature `link`): what the three programs have in common as programs: logging, signals, exit codes.
//!
//! Everything outside `link` and `service` is sans-IO: it takes bytes and a `now`, returns what to do, and never opens a
//! socket, reads the clock, spawns or awaits.

pub mod community;
pub mod ids;
pub mod share;
pub mod target;
pub mod transfer;
pub mod units;
pub mod wire;

#[cfg(feature = "link")]
pub mod link;
#[cfg(feature = "link")]
pub mod service;
