//! A whole neighbourhood in one process.
//!
//! * [`line`]: emulated WAN lines over loopback UDP: rate, delay, jitter, loss, queue, outage.

pub mod line;
