//! Reading a program's files: profiles, which are secret, and configurations.
//!
//! Errors name the file, what is wrong with it and what to do. No secret of a profile gets into one.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use thiserror::Error;

use super::Exit;
use crate::community::{
    member::Role,
    profile::{Profile, ProfileError},
};

/// A file that can't be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// There is no such file.
    #[error("{} does not exist: check the path{hint}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Where such a file comes from.
        hint: &'static str,
    },
    /// The file can't be read.
    #[error("can't read {}: {problem}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        problem: io::Error,
    },
    /// A directory, a device.
    #[error("{} is not a file: check the path", path.display())]
    NotAFile {
        /// What it was taken for.
        path: PathBuf,
    },
    /// Longer than [`FILE_BYTES_MAX`].
    #[error("{} is longer than {FILE_BYTES_MAX} bytes, so it is not the file that was meant: check the path", path.display())]
    Long {
        /// The file.
        path: PathBuf,
    },
    /// Others may read the secret in the file.
    #[error("{} holds a secret and others may read it (mode {mode:04o}): run `chmod 600 {}`", path.display(), path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The profile of another kind of member.
    #[error("{} is a {is}'s profile, {} needs a {needs}'s: ask for one made with `reconst {needs} add`", path.display(), needs.program())]
    Role {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        is: Role,
        /// Whose it must be.
        needs: Role,
    },
    /// Not a profile.
    #[error("{} is not a valid profile: {problem}; ask whoever runs `reconst` for a new one", path.display())]
    Profile {
        /// The file.
        path: PathBuf,
        /// What is wrong, without the secret in it.
        problem: String,
    },
    /// Not a configuration.
    #[error("{} is not a valid configuration: {}", path.display(), problem.to_string().trim_end())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong and on which line.
        problem: Box<toml::de::Error>,
    },
}

impl FileError {
    /// The exit code of a program that ends because of this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Mode { .. } => Exit::Permission,
            Self::Read { problem, .. } if problem.kind() == io::ErrorKind::PermissionDenied => Exit::Permission,
            Self::Profile { .. } => Exit::Data,
            Self::Missing { .. }
            | Self::Read { .. }
            | Self::Long { .. }
            | Self::NotAFile { .. }
            | Self::Role { .. }
            | Self::Config { .. } => Exit::Config,
        }
    }
}

/// Reads a setting that a file may have once, without brackets, or several times.
///
/// # Errors
/// If it is neither.
pub fn one_or_several<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "write one value in quotes, or several in brackets, as in [\"one\", \"two\"]")]
    enum OneOrSeveral<T> {
        One(T),
        Several(Vec<T>),
    }
    Ok(match OneOrSeveral::deserialize(deserializer)? {
        OneOrSeveral::One(value) => vec![value],
        OneOrSeveral::Several(values) => values,
    })
}

/// Reads the profile of a member whose role is `needs`.
///
/// # Errors
/// If the file is missing, readable for others than its owner, not a profile, or another role's.
pub fn read_profile(path: &Path, needs: Role) -> Result<Profile, FileError> {
    let text = read_secret(path, "; a profile is made with `reconst user add` or `reconst relay add`")?;
    let profile =
        Profile::parse(&text).map_err(|error| FileError::Profile { path: path.into(), problem: without_secrets(&text, &error) })?;
    if profile.identity.role != needs {
        return Err(FileError::Role { path: path.into(), is: profile.identity.role, needs });
    }
    Ok(profile)
}

/// Reads a file that holds a secret. `hint` ends the message if there is none: where such a file comes from.
///
/// # Errors
/// If the file is missing, or readable for others than its owner.
pub fn read_secret(path: &Path, hint: &'static str) -> Result<String, FileError> {
    let file = open(path, hint)?;
    check_owner_only(path, &file)?;
    read(path, file)
}

/// Reads a TOML configuration file. With `#[serde(deny_unknown_fields)]` on `T`, the error names the misspelt key, its line
/// and the keys there are.
///
/// # Errors
/// If the file is missing, can't be read or is not a `T`.
pub fn read_config<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let text = read(path, open(path, "")?)?;
    toml::from_str(&text).map_err(|problem| FileError::Config { path: path.into(), problem: Box::new(problem) })
}

/// Puts `text` in place of the file at `path`, whole or not at all, readable for its owner alone; the directory is made.
///
/// # Errors
/// If it can't be written there.
pub fn replace_secret(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;

    if let Some(directory) = path.parent() {
        make_directory(directory)?;
    }
    let beside = path.with_extension("new");
    let mut file = create_secret(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    std::fs::rename(&beside, path)
}

#[cfg(unix)]
fn make_directory(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;

    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(not(unix))]
fn make_directory(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)
}

#[cfg(unix)]
fn create_secret(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    // One that a crash has left may be anybody's.
    let _ = std::fs::remove_file(path);
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(not(unix))]
fn create_secret(path: &Path) -> io::Result<File> {
    File::create(path)
}

fn open(path: &Path, hint: &'static str) -> Result<File, FileError> {
    File::open(path).map_err(|problem| match problem.kind() {
        io::ErrorKind::NotFound => FileError::Missing { path: path.into(), hint },
        _ => FileError::Read { path: path.into(), problem },
    })
}

fn read(path: &Path, file: File) -> Result<String, FileError> {
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|problem| FileError::Read { path: path.into(), problem })?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(FileError::Long { path: path.into() });
    }
    Ok(text)
}

/// Looks at the file that was opened, so that nothing can be put in its place between the look and the reading.
#[cfg(unix)]
fn check_owner_only(path: &Path, file: &File) -> Result<(), FileError> {
    use std::os::unix::fs::PermissionsExt;

    let metadata = file.metadata().map_err(|problem| FileError::Read { path: path.into(), problem })?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path: path.into() });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Mode { path: path.into(), mode });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_owner_only(_path: &Path, _file: &File) -> Result<(), FileError> {
    Ok(())
}

/// TOML's own message quotes the line, which may be one of the key.
fn without_secrets(text: &str, error: &ProfileError) -> String {
    let ProfileError::Toml(error) = error else { return error.to_string() };
    let line = error.span().and_then(|span| text.get(..span.start)).map_or(1, |before| before.matches('\n').count() + 1);
    format!("line {line}: {}", error.message())
}

/// A profile takes about 3 KB, a configuration less; a wrong path may be a disk image.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::unix::fs::OpenOptionsExt,
        sync::atomic::{AtomicU32, Ordering},
    };

    use serde::Deserialize;

    use super::*;

    const PROFILE: &str = r#"
        role = "relay"
        name = "ann"
        lan = "elm"
        lan-id = 15
        reconst = ["203.0.113.1:10000"]
        certificate = "c"
        key = "the secret"
        authority = "a"
    "#;

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Sample {
        #[allow(dead_code)]
        weight_up: u32,
    }

    #[test]
    fn a_profile_that_others_may_read_is_refused_with_the_command_that_mends_it() {
        let path = Scratch::new(PROFILE, 0o640);
        let error = read_profile(&path.0, Role::Relay).expect_err("mode 0640");
        assert_eq!(error.exit(), Exit::Permission);
        assert!(error.to_string().contains(&format!("chmod 600 {}", path.0.display())), "{error}");
    }

    #[test]
    fn a_profile_of_another_role_is_refused_by_name() {
        let path = Scratch::new(PROFILE, 0o600);
        assert!(read_profile(&path.0, Role::Relay).is_ok());
        let error = read_profile(&path.0, Role::User).expect_err("a relay's");
        assert!(error.to_string().contains("is a relay's profile, proxy-local needs a user's"), "{error}");
    }

    #[test]
    fn an_error_in_a_profile_names_the_line_and_keeps_the_key() {
        let path = Scratch::new(&PROFILE.replace("\"the secret\"", "\"the secret"), 0o600);
        let error = read_profile(&path.0, Role::Relay).expect_err("not TOML");
        assert!(error.to_string().contains("line 8"), "{error}");
        assert!(!error.to_string().contains("the secret"), "{error}");
        assert_eq!(error.exit(), Exit::Data);
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_the_keys_there_are() {
        let path = Scratch::new("\nwieght-up = 3\n", 0o644);
        let error = read_config::<Sample>(&path.0).expect_err("misspelt").to_string();
        assert!(error.contains("wieght-up") && error.contains("line 2") && error.contains("`weight-up`"), "{error}");
    }

    #[test]
    fn a_message_says_each_thing_once() {
        let path = Scratch::new("wieght-up = 3\n", 0o644);
        let error = anyhow::Error::new(read_config::<Sample>(&path.0).expect_err("misspelt"));
        assert_eq!(format!("{error:#}").matches("unknown field").count(), 1);
    }

    #[test]
    fn a_missing_file_is_said_to_be_missing() {
        let error = read_config::<Sample>(Path::new("/nonexistent/tributary.toml")).expect_err("missing");
        assert!(matches!(error, FileError::Missing { .. }), "{error}");
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(text: &str, mode: u32) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let name = format!("tributary-files-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).expect("a new file");
            file.write_all(text.as_bytes()).expect("written");
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}
