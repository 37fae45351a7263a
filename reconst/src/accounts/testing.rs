//! A database of its own for each test, where PostgreSQL is to be tested.

use sqlx::{AssertSqlSafe, Connection, Executor};

use shared::{ids::LanId, target::Host};

use super::{Accounts, Database};
use crate::provision::{DEFAULT_LOGIN_PORT, Registrar};

/// A new state with LAN 15, elm, in SQLite or PostgreSQL.
pub(crate) async fn registrar() -> (Registrar, tempfile::TempDir) {
    let scratch = tempfile::tempdir().expect("a directory");
    let host = Host::parse("127.0.0.1").expect("a host");
    let database = postgres().await;
    let state = scratch.path().join("state");
    let registrar = Registrar::init_with(&state, &[host], DEFAULT_LOGIN_PORT, database.as_ref()).await.expect("a new state");
    registrar.add_lan(&"elm".parse().expect("a name"), Some(LanId(15)), None).await.expect("a new LAN");
    (registrar, scratch)
}

impl Accounts {
    /// Does what no program does, or only an earlier version.
    pub(crate) async fn change_unnoticed(&self, sql: &'static str) {
        sqlx::query(sql).execute(&self.pool).await.expect("a statement");
    }
}

/// A new database of the PostgreSQL that [`SERVER`] names; without that, tests take SQLite.
async fn postgres() -> Option<Database> {
    let server = std::env::var(SERVER).ok()?;
    sqlx::any::install_default_drivers();
    let name = format!("test_{:016x}", rand::random::<u64>());
    let mut connection = sqlx::AnyConnection::connect(&server).await.expect("the PostgreSQL of the test");
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("the right to make databases");
    let (address, _) = server.rsplit_once('/').expect("a URL with a database");
    Some(format!("{address}/{name}").parse().expect("a URL"))
}

/// The URL of a PostgreSQL server in which each test makes a database of its own.
const SERVER: &str = "TRIBUTARY_TEST_POSTGRES";
