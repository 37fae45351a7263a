//! Opening the store, and its schema.

use std::{path::Path, time::Duration};

use sqlx::{
    SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::watch;

use super::{Accounts, AccountsError};

impl Accounts {
    /// Opens the store in an existing file, bringing its schema up to date.
    ///
    /// # Errors
    /// If it can't be opened, or was written by a later version.
    pub async fn open(database: &Path) -> Result<Self, AccountsError> {
        let options = SqliteConnectOptions::new()
            .filename(database)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS_MAX).acquire_timeout(ACQUIRE_TIMEOUT).connect_with(options).await?;
        match migrations().run(&pool).await {
            Ok(()) => Ok(Self { pool, changes: watch::Sender::new(0) }),
            Err(MigrateError::Execute(error)) => Err(AccountsError::Database(error)),
            Err(error) => Err(AccountsError::Damaged(error.to_string())),
        }
    }

    /// Closes the store's connections; what was written stays.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

fn migrations() -> Migrator {
    let members = include_str!("../../migrations/0001_members.sql").into_sql_str();
    let invites = include_str!("../../migrations/0002_invites.sql").into_sql_str();
    Migrator::with_migrations(vec![
        Migration::new(1, "members".into(), MigrationType::Simple, members, false),
        Migration::new(2, "invites".into(), MigrationType::Simple, invites, false),
    ])
}

/// Lookups while sessions come up in crowds; one more is held to notice changes.
const CONNECTIONS_MAX: u32 = 4;

/// A command waits this long for another's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A session is refused rather than kept waiting for longer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
