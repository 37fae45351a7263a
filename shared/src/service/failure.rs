//! The one message and the exit code (BSD `sysexits.h`) that a program ends with.

use std::{io, net::SocketAddr, process::ExitCode};

use thiserror::Error;

use super::FileError;

/// The exit code of a program that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// The command line can't be understood.
    Usage = 64,
    /// Input that was read is wrong.
    Data = 65,
    /// Something that is needed is not there: an address in use, a server that does not answer.
    Unavailable = 69,
    /// A fault of the program's own.
    Software = 70,
    /// The user may not do this.
    Permission = 77,
    /// The configuration is wrong.
    Config = 78,
}

/// A failure that ends the program: its exit code, and a sentence for a person that says what to do next.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{message}")]
pub struct Failure {
    /// What the shell sees.
    pub exit: Exit,
    /// What the person sees.
    pub message: String,
}

impl Failure {
    /// A failure with an exit code and a message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// A command line that can't be understood.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A configuration that is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Exit::Config, message)
    }

    /// Something that is needed and not there.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unavailable, message)
    }
}

/// Why `address`, which `setting` (`--listen`) asked for, could not be listened on, and what to do about it.
pub fn bind_failure(address: SocketAddr, setting: &str, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::AddrInUse => Failure::unavailable(format!(
            "{address} is already in use, perhaps by another copy of this program: stop that one or choose another address with {setting}"
        )),
        io::ErrorKind::AddrNotAvailable => Failure::config(format!(
            "{address} is not an address of this machine: choose one of its own with {setting} (`ip address` lists them)"
        )),
        io::ErrorKind::PermissionDenied => Failure::new(
            Exit::Permission,
            format!(
                "this user may not listen on {address}: choose a port from 1024 with {setting}, or grant the program CAP_NET_BIND_SERVICE"
            ),
        ),
        _ => Failure::unavailable(format!("can't listen on {address} ({setting}): {error}")),
    }
}

/// Ends `main`: prints the error, with its causes, as one message on standard error and gives the exit code.
///
/// The code is that of the [`Failure`] or [`FileError`] in the error's chain; otherwise it follows from the I/O error there.
pub fn conclude(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("error: {error:#}");
    ExitCode::from(exit_of(&error) as u8)
}

fn exit_of(error: &anyhow::Error) -> Exit {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.exit;
    }
    if let Some(file) = error.downcast_ref::<FileError>() {
        return file.exit();
    }
    match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => Exit::Permission,
        Some(_) => Exit::Unavailable,
        None => Exit::Software,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_exit_code_survives_added_context() {
        let error = anyhow::Error::new(Failure::config("no")).context("while starting");
        assert_eq!(exit_of(&error), Exit::Config);
        assert_eq!(format!("{error:#}"), "while starting: no");
        let denied = Err::<(), _>(io::Error::from(io::ErrorKind::PermissionDenied)).context("opening").expect_err("an error");
        assert_eq!(exit_of(&denied), Exit::Permission);
        assert_eq!(exit_of(&anyhow::anyhow!("a bug")), Exit::Software);
    }

    #[test]
    fn a_port_in_use_names_the_setting_that_changes_it() {
        let failure = bind_failure(SocketAddr::from(([127, 0, 0, 1], 1080)), "--listen", &io::ErrorKind::AddrInUse.into());
        assert_eq!(failure.exit, Exit::Unavailable);
        assert!(failure.message.contains("--listen"), "{failure}");
    }
}
