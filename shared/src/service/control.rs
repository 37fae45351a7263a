//! The local endpoint by which a program's owner commands it: HTTP over a Unix socket.
//!
//! Always holds: the socket lies in a directory of mode 0700 and has mode 0600 itself, and a peer of another user than the program's
//! own or root is turned away; no page in a browser can reach it, which a loopback port can't say of itself. A socket that a killed
//! program has left is replaced, one at which a program answers is not.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HOST, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

use super::Shutdown;

/// The socket, which is removed when this is dropped.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

/// What the owner asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// Whether it only looks.
    pub is_query: bool,
    /// The command's name: `status`, `pause`.
    pub name: String,
    /// Its arguments, JSON; empty for none.
    pub arguments: String,
}

/// What the program answers: JSON, or why not, for a person.
pub type Answer = Result<serde_json::Value, String>;

/// A command that got no answer.
#[derive(Debug, Error)]
pub enum ControlError {
    /// There is no such socket, or nothing listens at it.
    #[error("no program answers at {}: is it running? ({problem})", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        problem: io::Error,
    },
    /// The socket is another user's.
    #[error("this user may not command the program at {}: run this as the user that it runs as, or as root", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// No answer, or none that this program would give.
    #[error("the program at {} does not answer as it should: {problem}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What came instead.
        problem: String,
    },
    /// The program has said no.
    #[error("{0}")]
    Refused(String),
}

impl Control {
    /// Makes the socket at `path`, and the directory it lies in.
    ///
    /// # Errors
    /// If it can't be made there, or a program has it already ([`io::ErrorKind::AddrInUse`]).
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        if path.exists() {
            match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                Err(_) => fs::remove_file(path)?,
            }
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.into() })
    }

    /// Has `handle` answer commands until the program stops.
    pub async fn serve<H>(self, handle: H, shutdown: Shutdown)
    where
        H: Fn(Command) -> Answer + Send + Sync + 'static,
    {
        let handle = Arc::new(handle);
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let accept = async {
            loop {
                let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
                let stream = match self.listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "no command could be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                if !stream.peer_cred().is_ok_and(|peer| is_owner(peer.uid())) {
                    tracing::warn!("a command of another user was turned away");
                    continue;
                }
                let handle = Arc::clone(&handle);
                tokio::spawn(async move {
                    let _slot = slot;
                    let service = service_fn(move |request| answer(request, Arc::clone(&handle)));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(EXCHANGE_TIME)
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(stream), service);
                    if let Ok(Err(error)) = tokio::time::timeout(EXCHANGE_TIME, connection).await {
                        tracing::debug!(%error, "command");
                    }
                });
            }
        };
        tokio::select! {
            () = accept => (),
            () = shutdown.stopping() => (),
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Has the program at `path` answer a command.
///
/// # Errors
/// If it does not, or says no.
pub async fn command(path: &Path, command: &Command) -> Result<String, ControlError> {
    let answer = |problem: String| ControlError::Answer { path: path.into(), problem };
    let exchange = async {
        let stream = UnixStream::connect(path).await.map_err(|problem| match problem.kind() {
            io::ErrorKind::PermissionDenied => ControlError::Permission { path: path.into() },
            _ => ControlError::Connect { path: path.into(), problem },
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| answer(error.to_string()))?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(if command.is_query { Method::GET } else { Method::POST })
            .uri(format!("/{}", command.name))
            .header(HOST, "localhost")
            .body(Full::new(Bytes::from(command.arguments.clone())))
            .map_err(|error| answer(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| answer(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| answer(error.to_string()))?;
        driver.abort();
        let text = String::from_utf8(body.to_bytes().into()).map_err(|error| answer(error.to_string()))?;
        match status {
            StatusCode::OK => Ok(text),
            StatusCode::BAD_REQUEST => Err(ControlError::Refused(text)),
            status => Err(answer(status.to_string())),
        }
    };
    match tokio::time::timeout(EXCHANGE_TIME, exchange).await {
        Ok(result) => result,
        Err(_) => Err(answer(format!("nothing within {} s", EXCHANGE_TIME.as_secs()))),
    }
}

/// The directories in which sockets are made and looked for, best first: the service manager's for this service, this user's, the
/// system's, and where this user's programs keep their state.
pub fn directories() -> Vec<PathBuf> {
    let of_service = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let of_user = std::env::var_os("XDG_RUNTIME_DIR").map(|directory| PathBuf::from(directory).join("tributary"));
    let of_system = PathBuf::from("/run/tributary");
    let of_state = super::default_folder().map(|directory| directory.join("run"));
    let absolute = [of_service, of_user, Some(of_system), of_state].into_iter().flatten().filter(|path| path.is_absolute());
    absolute.collect()
}

/// The sockets of the programs of this `kind` (`peer-relay`) that run, in the order of their names.
pub fn sockets(kind: &str) -> Vec<PathBuf> {
    let is_of_kind = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(kind) && name.ends_with(".sock")
    };
    let entries = directories().into_iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten();
    let mut sockets: Vec<_> = entries.map(|entry| entry.path()).filter(|path| is_of_kind(path) && is_served(path)).collect();
    sockets.sort();
    sockets.dedup();
    sockets
}

/// Whether a program may answer at the socket: one that was killed leaves its behind.
fn is_served(path: &Path) -> bool {
    let connected = std::os::unix::net::UnixStream::connect(path);
    !connected.is_err_and(|error| matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound))
}

async fn answer<H>(request: Request<Incoming>, handle: Arc<H>) -> Result<Response<Full<Bytes>>, Infallible>
where
    H: Fn(Command) -> Answer,
{
    let is_query = request.method() == Method::GET;
    if !is_query && request.method() != Method::POST {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "Only GET and POST."));
    }
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let Ok(body) = Limited::new(request.into_body(), COMMAND_BYTES_MAX).collect().await else {
        return Ok(text(StatusCode::BAD_REQUEST, "the command is too long"));
    };
    let Ok(arguments) = String::from_utf8(body.to_bytes().into()) else {
        return Ok(text(StatusCode::BAD_REQUEST, "the command is not text"));
    };
    Ok(match handle(Command { is_query, name, arguments }) {
        Ok(value) => {
            let mut response = text(StatusCode::OK, format!("{value:#}\n"));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(reason) => text(StatusCode::BAD_REQUEST, reason),
    })
}

fn is_owner(user: u32) -> bool {
    user == 0 || user == rustix::process::getuid().as_raw()
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A person, a dashboard and a monitor at once, with room to spare.
const CONNECTIONS_MAX: usize = 16;

/// A whole exchange takes milliseconds.
const EXCHANGE_TIME: Duration = Duration::from_secs(5);

/// A command is a few words.
const COMMAND_BYTES_MAX: usize = 4096;

/// A status of a thousand clients takes about 300 KB.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Out of file descriptors is the usual reason that accepting fails, and it does not end by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_is_answered_or_refused_with_the_reason() {
        let (path, _directory) = serving();
        let ask = async |name: &str, arguments: &str| {
            command(&path, &Command { is_query: false, name: name.into(), arguments: arguments.into() }).await
        };
        assert!(ask("echo", "{\"line\":1}").await.expect("an answer").contains("{\\\"line\\\":1}"));
        assert_eq!(ask("fly", "").await.expect_err("refused").to_string(), "there is no fly");
    }

    #[tokio::test]
    async fn nobody_else_may_even_look_for_the_socket() {
        let (path, _directory) = serving();
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().expect("a directory"))), (0o600, 0o700));
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let (path, _directory) = serving();
        assert_eq!(Control::bind(&path).expect_err("in use").kind(), io::ErrorKind::AddrInUse);
        let left = path.with_file_name("left.sock");
        drop(std::os::unix::net::UnixListener::bind(&left).expect("a socket"));
        assert!(is_served(&path) && !is_served(&left));
        assert!(Control::bind(&left).is_ok());
        assert!(!left.exists(), "removed with its program");
    }

    fn serving() -> (PathBuf, tempfile::TempDir) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run").join("test.sock");
        let control = Control::bind(&path).expect("a socket");
        let handle = |command: Command| match command.name.as_str() {
            "echo" => Ok(serde_json::json!({ "arguments": command.arguments })),
            name => Err(format!("there is no {name}")),
        };
        tokio::spawn(control.serve(handle, Shutdown::new()));
        (path, directory)
    }
}
