//! Opening the store, and transactions on it.

use std::{
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, Once},
    time::Duration,
};

use sqlx::{
    Any, AnyConnection, Connection, Executor, Transaction,
    any::{AnyConnectOptions, AnyPoolOptions},
};
use tokio::{sync::watch, time::timeout};

use super::{
    Accounts, AccountsError, Database,
    changes::{KEPT, Recent},
    migrations,
};

/// Which of the two stores it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Backend {
    Sqlite,
    Postgres,
}

/// Connects once, and tells what is wrong if that fails: a pool says no more than that it has waited.
async fn try_to_connect(options: &AnyConnectOptions) -> Result<(), AccountsError> {
    let timed_out = |_| AccountsError::NoConnection(sqlx::Error::PoolTimedOut);
    let connected = timeout(ACQUIRE_TIMEOUT, AnyConnection::connect_with(options)).await.map_err(timed_out)?;
    connected.map_err(AccountsError::NoConnection)?.close().await.map_err(AccountsError::NoConnection)
}

impl Accounts {
    /// Opens the store, an existing file or a database of PostgreSQL, bringing its schema up to date.
    ///
    /// # Errors
    /// If it can't be opened or reached, or a later version has made it one that this one can't use.
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
        if backend == Backend::Postgres {
            try_to_connect(&options).await?;
        }
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    let settings = match backend {
                        Backend::Sqlite => SQLITE_SETTINGS,
                        Backend::Postgres => POSTGRES_SETTINGS,
                    };
                    connection.execute(settings).await.map(drop)
                })
            })
            .connect_with(options)
            .await?;
        migrations::run(backend, &pool).await?;
        Ok(Self { pool, backend, changes: Arc::new(watch::Sender::new(Recent::default())), known: Arc::default(), actor: "reconst".into() })
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

    /// A transaction in which an operator, or a member who enrols, changes something: running servers look again once it is committed, at what it
    /// is noted to [touch](Accounts::touch), or at everything. It holds the right to write from its start, so that it can't fail for another's in
    /// its middle, and no two of them are under way at once.
    pub(super) async fn write(&self) -> Result<Transaction<'static, Any>, sqlx::Error> {
        let mut transaction = self.write_unnoticed().await?;
        let number: i64 =
            sqlx::query_scalar("UPDATE revision SET number = number + 1 RETURNING number").fetch_one(&mut *transaction).await?;
        sqlx::query("DELETE FROM changes WHERE number <= $1").bind(number - KEPT).execute(&mut *transaction).await?;
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

/// What sqlx does again at each start, such as a table that it makes if there is none, is no news for the log. Warnings still are.
const POSTGRES_SETTINGS: &str = "SET client_min_messages = warning";

/// Lookups while sessions come up in crowds; one more is held to notice changes.
const CONNECTIONS_MAX: u32 = 4;

/// A session is refused rather than kept waiting for longer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_database_that_lets_nobody_in_is_told_with_its_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let database = Database::Postgres(format!("postgres://nobody@{}/none", listener.local_addr().expect("an address")));
        let hanging_up = async {
            loop {
                drop(listener.accept().await);
            }
        };
        let error = tokio::select! {
            opened = Accounts::open(&database) => opened.map(drop).expect_err("nobody is let in"),
            () = hanging_up => unreachable!("it goes on"),
        };
        assert!(matches!(&error, AccountsError::NoConnection(reason) if !matches!(reason, sqlx::Error::PoolTimedOut)), "{error}");
    }
}
