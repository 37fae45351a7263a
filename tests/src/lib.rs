//! A whole neighbourhood in one process.
//!
//! * [`line`]: emulated WAN lines over loopback UDP: rate, delay, jitter, loss, queue, outage.
//! * [`scene`]: sets of lines, read from TOML.
//! * [`stream`], [`content`] and [`load`]: a content server and its clients, every byte checked.
//! * [`simulation`]: both session cores in virtual time.

pub mod content;
pub mod line;
pub mod load;
pub mod scene;
pub mod simulation;
pub mod stream;
