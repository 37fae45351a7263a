//! Opening the store, and its schema: written once, for SQLite and PostgreSQL.

use std::{
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, Once},
    time::Duration,
};

use sqlx::{
    Any, AnyConnection, AssertSqlSafe, Executor, SqlSafeStr, Transaction,
    any::{AnyConnectOptions, AnyPoolOptions},
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};
use tokio::sync::watch;

use super::{Accounts, AccountsError, Database};

/// That only programs that count as nodes do keep counts in a store.
#[derive(Debug)]
pub struct Claim {
    _connection: AnyConnection,
}

/// Which of the two stores it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Backend {
    Sqlite,
    Postgres,
}

impl Accounts {
    /// Opens the store, an existing file or a database of PostgreSQL, bringing its schema up to date.
    ///
    /// # Errors
    /// If it can't be opened or reached, or was written by a later version.
    pub async fn open(database: &Database) -> Result<Self, AccountsError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let (backend, url) = match database {
            Database::File(path) => {
                let path = std::path::absolute(path).map_err(sqlx::Error::Io)?;
                (Backend::Sqlite, format!("sqlite://{}", percent_encoded(path.as_os_str().as_bytes())))
            }
            Database::Postgres(url) => (Backend::Postgres, url.clone()),
        };
        let options: AnyConnectOptions = url.parse()?;
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if backend == Backend::Sqlite {
                        connection.execute(SQLITE_SETTINGS).await?;
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await?;
        match migrations(backend).run(&pool).await {
            Ok(()) => Ok(Self { pool, backend, changes: Arc::new(watch::Sender::new(0)), known: Arc::default(), actor: "reconst".into() }),
            Err(MigrateError::Execute(error)) => Err(AccountsError::Database(error)),
            Err(error) => Err(AccountsError::Damaged(error.to_string())),
        }
    }

    /// Claims the store for programs that count as nodes do, until what is given is dropped: an earlier version, which served a store alone,
    /// would overwrite their counts. A file of SQLite is claimed with its state directory.
    ///
    /// # Errors
    /// If an earlier version has it, or the store does not answer.
    pub async fn claim(&self) -> Result<Option<Claim>, AccountsError> {
        if self.backend == Backend::Sqlite {
            return Ok(None);
        }
        let mut connection = self.pool.acquire().await?.detach();
        let is_claimed: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock_shared($1)").bind(CLAIM_KEY).fetch_one(&mut connection).await?;
        if is_claimed { Ok(Some(Claim { _connection: connection })) } else { Err(AccountsError::Claimed) }
    }

    /// A connection that belongs to the caller alone.
    pub(crate) async fn connection(&self) -> Result<AnyConnection, AccountsError> {
        Ok(self.pool.acquire().await?.detach())
    }

    /// Copies the store, as it is at one moment, into an empty file of SQLite. Others may read and write meanwhile.
    ///
    /// # Errors
    /// If the store is none of SQLite, or the file can't be written.
    pub async fn copy_to(&self, path: &Path) -> Result<(), AccountsError> {
        let path = path.to_str().ok_or_else(|| AccountsError::Damaged(format!("the path {}", path.display())))?;
        sqlx::query("VACUUM INTO $1").bind(path).execute(&self.pool).await?;
        Ok(())
    }

    /// Looks whether a store of SQLite is whole.
    ///
    /// # Errors
    /// If it is not.
    pub async fn check(&self) -> Result<(), AccountsError> {
        let found: String = sqlx::query_scalar("PRAGMA integrity_check(1)").fetch_one(&self.pool).await?;
        if found == "ok" { Ok(()) } else { Err(AccountsError::Damaged(found)) }
    }

    /// Closes the store's connections; what was written stays.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A transaction in which an operator, or a member who enrols, changes something: running servers look again once it is committed. It holds
    /// the right to write from its start, so that it can't fail for another's in its middle.
    pub(super) async fn write(&self) -> Result<Transaction<'static, Any>, sqlx::Error> {
        let mut transaction = self.write_unnoticed().await?;
        sqlx::query("UPDATE revision SET number = number + 1").execute(&mut *transaction).await?;
        Ok(transaction)
    }

    /// As [`Accounts::write`], for what nobody has to look at again.
    pub(super) async fn write_unnoticed(&self) -> Result<Transaction<'static, Any>, sqlx::Error> {
        match self.backend {
            Backend::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await,
            Backend::Postgres => self.pool.begin().await,
        }
    }
}

fn migrations(backend: Backend) -> Migrator {
    let all = [
        (1, "members", include_str!("../../migrations/0001_members.sql")),
        (2, "invites", include_str!("../../migrations/0002_invites.sql")),
        (3, "quotas", include_str!("../../migrations/0003_quotas.sql")),
        (4, "audit", include_str!("../../migrations/0004_audit.sql")),
        (5, "ledger", include_str!("../../migrations/0005_ledger.sql")),
        (6, "nodes", include_str!("../../migrations/0006_nodes.sql")),
        (7, "lan quotas", include_str!("../../migrations/0007_lan_quotas.sql")),
    ];
    let migration = |(version, name, sql): (i64, &'static str, &'static str)| {
        let sql = match backend {
            Backend::Sqlite => sql.into_sql_str(),
            Backend::Postgres => AssertSqlSafe(in_postgres(sql)).into_sql_str(),
        };
        Migration::new(version, name.into(), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(all.map(migration).into())
}

/// The types of SQLite's dialect, in which the schema is written, as PostgreSQL calls them.
fn in_postgres(sql: &str) -> String {
    let keys = ["lan_key", "member_id", "certificate_id", "audit_id", "node_key"];
    let sql = keys.iter().fold(sql.to_owned(), |sql, key| {
        let (key, identity) =
            (format!(" {key} INTEGER PRIMARY KEY,"), format!(" {key} BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,"));
        sql.replace(&key, &identity)
    });
    sql.replace(" INTEGER", " BIGINT").replace(" BLOB", " BYTEA")
}

fn percent_encoded(path: &[u8]) -> String {
    let encoded = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => char::from(*byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    path.iter().map(encoded).collect()
}

/// What others read meanwhile does not wait for writers, and what was committed survives a power cut. A command waits 5 s for another's
/// transaction.
const SQLITE_SETTINGS: &str = "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON";

/// A number that no other program is likely to lock in the same database: `tributar` in ASCII.
const CLAIM_KEY: i64 = 0x7472_6962_7574_6172;

/// Lookups while sessions come up in crowds; one more is held to notice changes.
const CONNECTIONS_MAX: u32 = 4;

/// A session is refused rather than kept waiting for longer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
