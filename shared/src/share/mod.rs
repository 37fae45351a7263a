//! What the owner of a line lets others have of it.
//!
//! * [`allowance`]: whether the line is shared right now: pauses, hours, a monthly cap.
//! * [`shaper`]: the rate of one direction, shared fairly between users, with short queues.
//! * [`yielding`]: how far a line is lent while its owner uses it.
//! * [`standing`]: when a queue has stood for so long that its sender does not see it any more.
//!
//! Packets are handles here and `now` is an argument; sockets, timers and counters are the driver's.

pub mod allowance;
pub mod shaper;
pub mod standing;
pub mod yielding;
