//! Telling the service manager what the program is about (sd_notify(3)).

use std::{env, io, os::unix::net::UnixDatagram};

/// What the service manager is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The program serves.
    Ready,
    /// It drains, and will end.
    Stopping,
}

/// Tells the service manager, if there is one that wants to know; what goes wrong is logged.
pub fn notify(notice: Notice) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    let message = match notice {
        Notice::Ready => "READY=1\n",
        Notice::Stopping => "STOPPING=1\n",
    };
    if let Err(error) = send(socket.as_encoded_bytes(), message.as_bytes()) {
        tracing::warn!(%error, "the service manager was not told");
    }
}

/// A name that begins with `@` is one of Linux's abstract addresses.
fn send(socket: &[u8], message: &[u8]) -> io::Result<()> {
    use std::os::unix::{ffi::OsStrExt, net::SocketAddr};
    let address = match socket.strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket))?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_it_at_a_path_and_at_an_abstract_address() {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = scratch.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        send(path.as_os_str().as_encoded_bytes(), b"READY=1\n").expect("sent");
        let mut heard = [0; 64];
        assert_eq!(manager.recv(&mut heard).expect("heard"), 8);
        assert!(send(b"/nowhere/to/be/found", b"READY=1\n").is_err());
    }
}
