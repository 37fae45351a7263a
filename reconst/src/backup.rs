//! Copies of a state directory, made while `reconst` runs, and put in its place again.
//!
//! Always holds: a backup is whole or not there, is its owner's alone, and is itself a state directory. Members in PostgreSQL are left to
//! PostgreSQL's own tools.

use std::{fs, path::Path};

use shared::service::{Exit, Failure};

use crate::{
    accounts::{Accounts, Database},
    state::StateDir,
};

/// Where a copy's members are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Members {
    /// In the copy.
    Copied,
    /// Still only in this database.
    Elsewhere(Database),
}

/// Copies the state in `state` to the new directory `to`.
///
/// # Errors
/// If there is no state, or `to` exists or can't be written.
pub async fn backup(state: &Path, to: &Path) -> Result<Members, Failure> {
    copy(state, to).await
}

/// Puts a backup in the place of a state directory that is empty or not there.
///
/// # Errors
/// If it is no backup, is damaged, or the place is not empty.
pub async fn restore(backup: &Path, state: &Path) -> Result<Members, Failure> {
    let members = copy(backup, state).await?;
    // Whatever is wrong with it is found now, not when members are refused.
    let database = StateDir::open(state)?.database()?;
    if let Database::File(_) = database {
        let accounts = Accounts::open(&database).await?;
        accounts.check().await?;
        accounts.close().await;
    }
    Ok(members)
}

async fn copy(from: &Path, to: &Path) -> Result<Members, Failure> {
    let from = StateDir::open(from)?;
    if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::config(format!("{} holds something already: choose a new directory", to.display())));
    }
    let failure = |error| Failure::unavailable(format!("can't write {}: {error}", to.display()));
    let mut name = to.file_name().ok_or_else(|| Failure::usage("name a directory to write to"))?.to_owned();
    name.push(".partial");
    let partial = to.with_file_name(name);
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(failure)?;
    }
    let members = copy_into(&from, &partial).await.inspect_err(|_| {
        let _ = fs::remove_dir_all(&partial);
    })?;
    let _ = fs::remove_dir(to);
    fs::rename(&partial, to).map_err(failure)?;
    Ok(members)
}

async fn copy_into(from: &StateDir, to: &Path) -> Result<Members, Failure> {
    let copied = from.copy_to(to)?;
    match from.database()? {
        database @ Database::File(_) => {
            let Database::File(path) = copied.database()? else {
                return Err(Failure::new(Exit::Software, "the copy of the state names another database"));
            };
            let accounts = Accounts::open(&database).await?;
            accounts.copy_to(&path).await?;
            accounts.close().await;
            Ok(Members::Copied)
        }
        database => Ok(Members::Elsewhere(database)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use shared::{community::member::Role, ids::LanId, target::Host};

    use super::*;
    use crate::{
        accounts::Limits,
        provision::{DEFAULT_LOGIN_PORT, Registrar},
    };

    #[tokio::test]
    async fn a_backup_of_a_state_in_use_comes_back_whole() {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = |name: &str| scratch.path().join(name);
        let host = Host::parse("127.0.0.1").expect("a host");
        let registrar = Registrar::init(&path("state"), &[host], DEFAULT_LOGIN_PORT).await.expect("a new state");
        let elm = "elm".parse().expect("a name");
        registrar.add_lan(&elm, Some(LanId(15)), None).await.expect("a new LAN");
        let add = async |registrar: &Registrar, name: &str| {
            registrar.add_user(&elm, &name.parse().expect("a name"), &Limits::default()).await.expect("a user")
        };
        let ann = add(&registrar, "ann").await;
        assert_eq!(backup(&path("state"), &path("copy")).await.expect("a backup"), Members::Copied);
        add(&registrar, "bob").await;
        assert!(backup(&path("state"), &path("copy")).await.is_err(), "a backup is never overwritten");
        assert!(restore(&path("copy"), &path("state")).await.is_err(), "nor is a state");

        restore(&path("copy"), &path("restored")).await.expect("a state again");
        let restored = Registrar::open(&path("restored")).await.expect("a state");
        assert_eq!(restored.accounts().member_count(Role::User).await.expect("a count"), 1, "ann, who was there at the time");
        let certificate = shared::link::tls::certificate("certificate", &ann.certificate_pem).expect("PEM");
        restored.accounts().authorise(&certificate, Role::User).await.expect("ann is a member still");
        for file in fs::read_dir(path("copy")).expect("a directory").flatten() {
            let mode = file.metadata().expect("a file").permissions().mode() & 0o777;
            assert!(mode == 0o600 || file.path().extension().is_some_and(|extension| extension == "pem"), "{:?} {mode:o}", file.path());
        }
    }

    #[tokio::test]
    async fn a_damaged_backup_is_told() {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = |name: &str| scratch.path().join(name);
        let host = Host::parse("127.0.0.1").expect("a host");
        Registrar::init(&path("state"), &[host], DEFAULT_LOGIN_PORT).await.expect("a new state").accounts().close().await;
        backup(&path("state"), &path("copy")).await.expect("a backup");
        fs::write(path("copy").join("members.db"), "SQLite format 3\0 and then nothing of the kind").expect("a file");
        assert!(restore(&path("copy"), &path("restored")).await.is_err());
        assert!(!path("restored").exists());
    }
}
