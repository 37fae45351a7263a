//! A whole neighbourhood in one process: what Tributary's demo, benchmark and end-to-end tests stand on.
//!
//! * [`mod@line`]: emulated WAN lines over loopback UDP: rate, delay, jitter, loss, queue, outage.
//! * [`scene`]: sets of lines, read from TOML.
//! * [`stream`], [`content`] and [`load`]: a content server and its clients, every byte checked.
//! * [`program`] and [`neighbourhood`]: the three programs put together over such lines.
//! * [`process`] and [`hosts`]: the programs, and other systems, on hosts of their own: network namespaces.
//! * [`cluster`]: several nodes of `reconst` as processes on one PostgreSQL.
//! * [`mod@bench`]: figures of a scene; [`cost`]: processor time and memory without any lines.
//! * [`simulation`]: both session cores in virtual time.

pub mod bench;
pub mod cluster;
pub mod content;
pub mod cost;
pub mod hosts;
pub mod line;
pub mod load;
pub mod neighbourhood;
pub mod process;
pub mod program;
pub mod scene;
pub mod simulation;
pub mod stream;
