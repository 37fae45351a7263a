//! A whole neighbourhood in one process: what Tributary's demo, benchmark and end-to-end tests stand on.
//!
//! * [`mod@line`]: emulated WAN lines over loopback UDP: rate, delay, jitter, loss, queue, outage.
//! * [`scene`]: sets of lines, read from TOML.
//! * [`stream`], [`content`] and [`load`]: a content server and its clients, every byte checked.
//! * [`program`] and [`neighbourhood`]: the three programs put together over such lines.
//! * [`mod@bench`]: figures of a scene.
//! * [`simulation`]: both session cores in virtual time.

pub mod bench;
pub mod content;
pub mod line;
pub mod load;
pub mod neighbourhood;
pub mod program;
pub mod scene;
pub mod simulation;
pub mod stream;
