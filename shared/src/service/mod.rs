//! What the three programs have in common as programs.
//!
//! * [`Shutdown`], [`shutdown_on_signals`], [`Reloads`]: when to drain, to stop, to read the configuration again.
//! * [`LogFormat`], [`init_logging`]: the log, on standard error.
//! * [`read_profile`], [`read_config`]: files, with errors that say what to do.
//! * [`ProfilePlace`], [`default_profile`]: where a profile is kept; [`joining`]: how a PC gets one;
//!   [`install`]: how its program becomes a service; [`commands`]: the commands for that.
//! * [`Failure`], [`conclude`]: the one message and the exit code that a program ends with.
//! * [`StateFile`]: what is remembered from one run to the next.
//! * [`NetworkWatch`]: whether this PC's network is another, or it has slept.
//! * [`notify()`]: telling the service manager.
//! * [`admin`]: the HTTP endpoint behind `status`.
//! * `control`: the Unix socket by which the owner commands a program.

pub mod admin;
pub mod commands;
#[cfg(unix)]
pub mod control;
mod failure;
mod files;
pub mod install;
pub mod joining;
mod logging;
mod network;
#[cfg(unix)]
mod notify;
mod profile_file;
mod shutdown;
mod state;

pub use failure::{Exit, Failure, bind_failure, conclude};
pub use files::{FileError, one_or_several, read_config, read_profile, read_secret, replace_secret};
pub use logging::{LogFormat, init_logging};
pub use network::{NetworkChange, NetworkWatch};
#[cfg(unix)]
pub use notify::{Notice, notify};
pub use profile_file::{ProfilePlace, default_profile, found_profile, is_root, system_state};
pub use shutdown::{Reloads, Shutdown, reload_on_hangup, shutdown_on_signals};
pub use state::{StateFile, default_folder};
