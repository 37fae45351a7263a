//! The state directory: where one `reconst` keeps its authority, its certificate and its members.
//!
//! Always holds: the directory is its owner's alone, each file is created with its final mode and never overwritten by accident, and a
//! key that others could read is refused. What is in the member database is left to [`accounts`](crate::accounts).

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use shared::service::{Exit, Failure, read_secret};

use crate::{
    accounts::Database,
    authority::{Authority, Issued},
    nodes::NodeIdentity,
};

/// A state directory by its path.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// `reconst`'s own certificate with its key, as kept.
pub struct ServerCertificate {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// Its key, PEM. A secret.
    pub key_pem: String,
}

impl StateDir {
    /// A new state directory, empty.
    ///
    /// # Errors
    /// If there is anything in it already, or it can't be made.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Failure::config(format!(
                "{} already holds something: choose another --state directory, or remove this one to begin anew (its members' profiles \
                 become worthless)",
                path.display()
            )));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| failure("make", path, &error))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|error| failure("make private", path, &error))?;
        Ok(Self { path: path.into() })
    }

    /// The state directory that was made at `path`.
    ///
    /// # Errors
    /// If there is none, or its keys are readable for others.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let state = Self { path: path.into() };
        if !path.join(AUTHORITY_CERTIFICATE).exists() {
            return Err(Failure::config(format!(
                "{} is no state directory: make one with `reconst init --state {} --public HOST`",
                path.display(),
                path.display()
            )));
        }
        let secrets = [AUTHORITY_KEY, SERVER_KEY].into_iter().chain(path.join(DATABASE_URL).exists().then_some(DATABASE_URL));
        for key in secrets.map(|name| path.join(name)) {
            let mode = fs::metadata(&key).map_err(|error| failure("look at", &key, &error))?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(Failure::new(
                    Exit::Permission,
                    format!("{} is a secret and others may read it (mode {mode:04o}): run `chmod 600 {}`", key.display(), key.display()),
                ));
            }
        }
        Ok(state)
    }

    /// Where the members are kept: in PostgreSQL if that was chosen, else in a file here.
    ///
    /// # Errors
    /// If what names the database can't be read.
    pub fn database(&self) -> Result<Database, Failure> {
        if !self.path.join(DATABASE_URL).exists() {
            return Ok(Database::File(self.path.join(DATABASE)));
        }
        let damaged = |error| Failure::config(format!("{}: {error}", self.path.join(DATABASE_URL).display()));
        self.read(DATABASE_URL)?.parse().map_err(damaged)
    }

    /// Chooses where the members are kept: makes the file, empty, or notes the URL; for their owner alone.
    ///
    /// # Errors
    /// If that is chosen already or can't be written.
    pub fn choose_database(&self, postgres: Option<&Database>) -> Result<(), Failure> {
        match postgres {
            Some(Database::Postgres(url)) => create_secret(&self.path.join(DATABASE_URL), &format!("{url}\n")),
            _ => create_secret(&self.path.join(DATABASE), ""),
        }
    }

    /// Copies all but the members to a new state directory at `path`.
    ///
    /// # Errors
    /// If something can't be read or written.
    pub fn copy_to(&self, path: &Path) -> Result<Self, Failure> {
        let copy = Self::create(path)?;
        for (name, mode) in [(AUTHORITY_KEY, 0o600), (AUTHORITY_CERTIFICATE, 0o644), (SERVER_KEY, 0o600), (SERVER_CERTIFICATE, 0o644)] {
            create(&path.join(name), &self.read(name)?, mode)?;
        }
        match self.database()? {
            database @ Database::Postgres(_) => copy.choose_database(Some(&database))?,
            Database::File(_) => copy.choose_database(None)?,
        }
        if let Some(node) = self.node()? {
            copy.keep_node(&node)?;
        }
        Ok(copy)
    }

    /// Makes the state of another node at `path`: the same authority, a certificate of its own.
    ///
    /// # Errors
    /// If something can't be read or written, or the members are in a file, which other servers don't have.
    pub(crate) fn create_node(&self, path: &Path, node: &NodeIdentity, server: &Issued, database: &Database) -> Result<Self, Failure> {
        let other = Self::create(path)?;
        for (name, mode) in [(AUTHORITY_KEY, 0o600), (AUTHORITY_CERTIFICATE, 0o644)] {
            create(&path.join(name), &self.read(name)?, mode)?;
        }
        other.keep_server_certificate(server)?;
        other.choose_database(Some(database))?;
        other.keep_node(node)?;
        Ok(other)
    }

    /// The token of the admin API, made when it is asked for first.
    ///
    /// # Errors
    /// If it can't be read or written.
    pub fn api_token(&self) -> Result<String, Failure> {
        let path = self.path.join(API_TOKEN);
        if !path.exists() {
            let token: String = rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
            create_secret(&path, &format!("{token}\n"))?;
        }
        let token = read_secret(&path, "").map_err(|error| Failure::new(error.exit(), error.to_string()))?;
        let token = token.trim();
        if token.len() < TOKEN_CHARS_MIN {
            return Err(Failure::config(format!("{} is too short for a token: remove it, and another is made", path.display())));
        }
        Ok(token.into())
    }

    /// Claims the state for this program, until what is given is dropped.
    ///
    /// # Errors
    /// If another one has it.
    pub fn claim(&self) -> Result<File, Failure> {
        let path = self.path.join(CLAIM);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|error| failure("write", &path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                Err(Failure::unavailable(format!("another reconst runs on {}: end it first", self.path.display())))
            }
            Err(fs::TryLockError::Error(error)) => Err(failure("lock", &path, &error)),
        }
    }

    /// Keeps a new authority.
    ///
    /// # Errors
    /// If there is one already, or it can't be written.
    pub fn keep_authority(&self, authority: &Issued) -> Result<(), Failure> {
        create_secret(&self.path.join(AUTHORITY_KEY), &authority.key_pem)?;
        create(&self.path.join(AUTHORITY_CERTIFICATE), &authority.certificate_pem, 0o644)
    }

    /// Keeps `reconst`'s own certificate in place of the one before.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn keep_server_certificate(&self, server: &Issued) -> Result<(), Failure> {
        self.replace(SERVER_KEY, &server.key_pem, 0o600)?;
        self.replace(SERVER_CERTIFICATE, &server.certificate_pem, 0o644)
    }

    /// The authority that was kept, with its key.
    ///
    /// # Errors
    /// If its files can't be read.
    pub fn authority(&self) -> Result<Authority, Failure> {
        Authority::from_pem(self.authority_pem()?, &self.read(AUTHORITY_KEY)?).map_err(|error| {
            let message =
                format!("the authority in {} is not usable ({error}): restore {AUTHORITY_KEY} from a backup", self.path.display());
            Failure::new(Exit::Data, message)
        })
    }

    /// What all nodes of this `reconst` know and nobody else does.
    ///
    /// # Errors
    /// If it can't be read.
    pub(crate) fn shared_secret(&self) -> Result<Arc<[u8]>, Failure> {
        Ok(self.read(AUTHORITY_KEY)?.into_bytes().into())
    }

    /// The node that this server is, if the state was made for one; the server that `reconst init` made is [`FIRST_NODE`].
    ///
    /// # Errors
    /// If that can't be read.
    pub fn node(&self) -> Result<Option<NodeIdentity>, Failure> {
        let path = self.path.join(NODE);
        if !path.exists() {
            return Ok(None);
        }
        let text = self.read(NODE)?;
        let damaged = || Failure::new(Exit::Data, format!("{} is damaged: make the state anew with `reconst node add`", path.display()));
        let (name, public) = text.trim().split_once(' ').ok_or_else(damaged)?;
        Ok(Some(NodeIdentity { name: name.parse().map_err(|_| damaged())?, public: public.parse().map_err(|_| damaged())? }))
    }

    /// Notes which node this server is.
    ///
    /// # Errors
    /// If that is noted already, or can't be written.
    pub(crate) fn keep_node(&self, node: &NodeIdentity) -> Result<(), Failure> {
        create(&self.path.join(NODE), &format!("{} {}\n", node.name, node.public), 0o644)
    }

    /// The authority's certificate, PEM.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn authority_pem(&self) -> Result<String, Failure> {
        self.read(AUTHORITY_CERTIFICATE)
    }

    /// `reconst`'s own certificate.
    ///
    /// # Errors
    /// If its files can't be read.
    pub fn server_certificate(&self) -> Result<ServerCertificate, Failure> {
        Ok(ServerCertificate { certificate_pem: self.read(SERVER_CERTIFICATE)?, key_pem: self.read(SERVER_KEY)? })
    }

    fn read(&self, name: &str) -> Result<String, Failure> {
        let path = self.path.join(name);
        fs::read_to_string(&path).map_err(|error| failure("read", &path, &error))
    }

    fn replace(&self, name: &str, contents: &str, mode: u32) -> Result<(), Failure> {
        let (new, path) = (self.path.join(format!("{name}.new")), self.path.join(name));
        let _ = fs::remove_file(&new);
        create(&new, contents, mode)?;
        fs::rename(&new, &path).map_err(|error| failure("write", &path, &error))
    }
}

/// The name of the server that `reconst init` made.
pub const FIRST_NODE: &str = "main";

/// Writes a new file of mode 0600.
///
/// # Errors
/// If the file exists: nothing is overwritten.
pub fn create_secret(path: &Path, contents: &str) -> Result<(), Failure> {
    create(path, contents, 0o600)
}

fn create(path: &Path, contents: &str, mode: u32) -> Result<(), Failure> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|error| failure("write", path, &error))?;
    let written = file.write_all(contents.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|error| {
        let _ = fs::remove_file(path);
        failure("write", path, &error)
    })
}

fn failure(action: &str, path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::config(format!("{path} exists and is not overwritten: move it away or choose another path"))
        }
        io::ErrorKind::PermissionDenied => Failure::new(
            Exit::Permission,
            format!("this user may not {action} {path}: run as the user that owns it, or choose another path"),
        ),
        io::ErrorKind::NotFound => Failure::config(format!("can't {action} {path}: there is no such file or directory")),
        _ => Failure::unavailable(format!("can't {action} {path}: {error}")),
    }
}

const AUTHORITY_KEY: &str = "authority.key";
const AUTHORITY_CERTIFICATE: &str = "authority.pem";
const SERVER_KEY: &str = "server.key";
const SERVER_CERTIFICATE: &str = "server.pem";
const DATABASE: &str = "members.db";
const DATABASE_URL: &str = "database";
const CLAIM: &str = "running.lock";
const NODE: &str = "node";
const API_TOKEN: &str = "api-token";

/// Nobody guesses that.
const TOKEN_CHARS_MIN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_their_owners_alone_and_never_overwritten() {
        let scratch = tempfile::tempdir().expect("a directory");
        let state = StateDir::create(&scratch.path().join("state")).expect("a state directory");
        let (authority, issued) = Authority::create("isp.example").expect("an authority");
        state.keep_authority(&issued).expect("a place for it");
        state.keep_server_certificate(&authority.issue_server().expect("a certificate")).expect("a place for it");
        let mode = |name: &str| fs::metadata(scratch.path().join("state").join(name)).expect("a file").permissions().mode() & 0o777;
        assert_eq!((mode(""), mode(AUTHORITY_KEY), mode(SERVER_KEY)), (0o700, 0o600, 0o600));
        assert_eq!(state.keep_authority(&issued).expect_err("an authority is there").exit, Exit::Config);
        state.authority().expect("the authority that was kept");
    }

    #[test]
    fn a_directory_in_use_is_left_alone() {
        let scratch = tempfile::tempdir().expect("a directory");
        fs::write(scratch.path().join("thesis.tex"), "years of work").expect("a file");
        assert!(StateDir::create(scratch.path()).is_err());
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_the_command_that_mends_it() {
        let scratch = tempfile::tempdir().expect("a directory");
        for name in [AUTHORITY_KEY, AUTHORITY_CERTIFICATE, SERVER_KEY, DATABASE] {
            create_secret(&scratch.path().join(name), "").expect("a file");
        }
        StateDir::open(scratch.path()).expect("all as it should be");
        fs::set_permissions(scratch.path().join(SERVER_KEY), fs::Permissions::from_mode(0o640)).expect("our own file");
        let failure = StateDir::open(scratch.path()).expect_err("a key for all to read");
        assert_eq!(failure.exit, Exit::Permission);
        assert!(failure.message.contains("chmod 600"), "{failure}");
    }
}
