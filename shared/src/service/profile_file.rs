//! Where a profile is kept, and how it is written.
//!
//! Always holds: a profile is never there in part, never readable for others than its owner, and never overwritten unasked.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{Exit, Failure};
use crate::community::{member::Role, profile::Profile};

/// A place for a profile: a file beside it that takes its place once it is written. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct ProfilePlace {
    path: PathBuf,
    new: PathBuf,
    file: File,
    may_replace: bool,
}

/// Where the profile of a member of this role is unless something else is said: in the service's state directory, for root in
/// [`system_state`], for anyone else below the user's configuration.
///
/// # Errors
/// If this user has no directory of its own.
pub fn default_profile(role: Role) -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let name = file_name(role);
    if let Some(state) = variable("STATE_DIRECTORY") {
        return Ok(state.join(name));
    }
    if is_root() {
        return Ok(system_profile(role));
    }
    let below = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    let below = below.ok_or_else(|| Failure::usage("this user has no home directory: say where the profile is with --profile FILE"))?;
    Ok(below.join("tributary").join(name))
}

/// The profile at [`default_profile`], for a program that was told of no other.
///
/// # Errors
/// If there is none.
pub fn found_profile(role: Role) -> Result<PathBuf, Failure> {
    let path = default_profile(role)?;
    if path.exists() {
        return Ok(path);
    }
    Err(Failure::usage(format!(
        "no profile: there is none at {}; become a member with `{} join LINK`, or say where it is with --profile FILE",
        path.display(),
        role.program()
    )))
}

/// Where the system's service has its profile.
pub(super) fn system_profile(role: Role) -> PathBuf {
    system_state(role).join(file_name(role))
}

fn file_name(role: Role) -> &'static str {
    match role {
        Role::User => "user.toml",
        Role::Relay => "relay.toml",
    }
}

/// The state directory of the system's service.
pub fn system_state(role: Role) -> PathBuf {
    Path::new("/var/lib").join(match role {
        Role::User => "tributary-proxy",
        Role::Relay => "tributary-relay",
    })
}

/// Whether this program runs as root.
#[cfg(unix)]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this program runs as root.
#[cfg(not(unix))]
pub fn is_root() -> bool {
    false
}

impl ProfilePlace {
    /// A place at `path`, where nothing must be yet unless `may_replace`; the directories above it are made, for their owner alone.
    ///
    /// # Errors
    /// If there is a file already, or this user may not write there.
    pub fn reserve(path: &Path, may_replace: bool) -> Result<Self, Failure> {
        if !may_replace && path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        private_directories().create(folder).map_err(|error| failure("make the directory", folder, &error))?;
        let mut name = path.file_name().ok_or_else(|| Failure::usage(format!("{} names no file", path.display())))?.to_owned();
        name.push(format!(".new-{}", std::process::id()));
        let new = folder.join(name);
        let _ = fs::remove_file(&new);
        let file = private_file().open(&new).map_err(|error| failure("write", path, &error))?;
        give_to_owner_of(&file, folder).map_err(|error| failure("write", path, &error))?;
        Ok(Self { path: path.into(), new, file, may_replace })
    }

    /// Puts the profile there, whole or not at all.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn fill(mut self, profile: &Profile) -> Result<(), Failure> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&self.path),
            _ => failure("write", &self.path, &error),
        };
        self.file.write_all(profile.to_toml().as_bytes()).and_then(|()| self.file.sync_all()).map_err(failed)?;
        // Unlike a renaming, a link takes no file's place; some file systems have none.
        let linked = if self.may_replace { Err(io::ErrorKind::Unsupported.into()) } else { fs::hard_link(&self.new, &self.path) };
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(failed(error)),
            Err(_) => fs::rename(&self.new, &self.path).map_err(failed)?,
            Ok(()) => (),
        }
        if let Some(folder) = self.path.parent().and_then(|folder| File::open(folder).ok()) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Drop for ProfilePlace {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.new);
    }
}

fn private_directories() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A profile that root writes into a service's directory is the service's.
#[cfg(unix)]
fn give_to_owner_of(file: &File, folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};

    let owner = fs::metadata(folder)?;
    if is_root() && owner.uid() != 0 { fchown(file, Some(owner.uid()), Some(owner.gid())) } else { Ok(()) }
}

#[cfg(not(unix))]
fn give_to_owner_of(_file: &File, _folder: &Path) -> io::Result<()> {
    Ok(())
}

fn exists(path: &Path) -> Failure {
    Failure::config(format!(
        "{} exists already and is not overwritten: choose another file with --profile, or replace it with --force",
        path.display()
    ))
}

fn failure(action: &str, path: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Failure::new(Exit::Permission, format!("this user may not {action} {}: choose another file with --profile", path.display()))
        }
        _ => Failure::unavailable(format!("can't {action} {}: {error}", path.display())),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{community::member::Identity, ids::LanId};

    #[test]
    fn a_profile_is_its_owners_alone_and_not_overwritten_unasked() {
        let scratch = Scratch::new();
        let path = scratch.0.join("deep/er/user.toml");
        ProfilePlace::reserve(&path, false).expect("room").fill(&profile("one")).expect("written");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().expect("a folder"))), (0o600, 0o700));
        let failure = ProfilePlace::reserve(&path, false).expect_err("one is there");
        assert!(failure.message.contains("--force") && failure.exit == Exit::Config, "{failure}");
        ProfilePlace::reserve(&path, true).expect("room").fill(&profile("two")).expect("written");
        assert_eq!(Profile::parse(&fs::read_to_string(&path).expect("there")).expect("a profile"), profile("two"));
        assert_eq!((mode(&path), scratch.files("deep/er")), (0o600, 1));
    }

    #[test]
    fn a_profile_that_came_meanwhile_is_left_alone_and_nothing_else_stays() {
        let scratch = Scratch::new();
        let path = scratch.0.join("user.toml");
        let place = ProfilePlace::reserve(&path, false).expect("room");
        fs::write(&path, "another's").expect("written");
        assert_eq!(place.fill(&profile("one")).expect_err("one is there").exit, Exit::Config);
        assert_eq!((fs::read_to_string(&path).expect("there"), scratch.files("")), ("another's".into(), 1));
        drop(ProfilePlace::reserve(&scratch.0.join("other.toml"), false).expect("room"));
        assert_eq!(scratch.files(""), 1);
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("tributary-profiles-{}-{number}", std::process::id()));
            fs::create_dir(&path).expect("a new directory");
            Self(path)
        }

        fn files(&self, below: &str) -> usize {
            fs::read_dir(self.0.join(below)).expect("a directory").count()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn profile(key: &str) -> Profile {
        Profile {
            identity: Identity { name: "ann".parse().expect("a name"), role: Role::User, lan: LanId(15) },
            lan_name: "elm".parse().expect("a name"),
            reconst: vec!["isp.example:10000".parse().expect("a target")],
            certificate_pem: "c".into(),
            key_pem: key.into(),
            authority_pem: "a".into(),
        }
    }
}
