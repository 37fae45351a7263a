//! Both ends of a session in virtual time: no socket, no clock, no task; a seed replays everything.
//!
//! * [`world`]: two session cores and the lines between them; time moves from event to event.
//! * [`script`], [`application`], [`parcels`], [`oracle`]: sessions drawn from a seed, in which anything happens, and whether all comes out right.
//! * [`measure`]: figures of transfers and requests over a set of lines, for tuning.
//! * [`shared_line`]: several users at a line of which its owner shares a part.
//! * [`call`]: what a call hears over a set of lines.
//! * [`lines`]: sets of lines from a command line or a seed.

pub mod application;
pub mod call;
mod forgery;
pub mod lines;
pub mod measure;
pub mod oracle;
pub mod parcels;
pub mod script;
pub mod shared_line;
pub mod world;
