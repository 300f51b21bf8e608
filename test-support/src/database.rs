//! A database for one test.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use sqlx::{
    AssertSqlSafe, Connection, Decode, Executor, PgConnection, Postgres, Sqlite, SqliteConnection, Type,
};
use url::Url;

/// A database that one test has to itself. It is removed when the last clone is dropped, also if the test fails.
#[derive(Clone, Debug)]
pub struct Database {
    pub url: String,
    #[expect(dead_code, reason = "dropping it removes the database")]
    kept: Option<Arc<Kept>>,
}

/// Removes the database when dropped.
#[derive(Debug)]
enum Kept {
    Folder(#[expect(dead_code, reason = "dropping it removes the folder")] tempfile::TempDir),
    Postgres { name: String },
}

impl Database {
    /// Returns an SQLite database that does not exist yet: a server creates it.
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = Self::sqlite_in(folder.path()).url;
        Self { url, kept: Some(Arc::new(Kept::Folder(folder))) }
    }

    /// Returns an SQLite database in a folder that the caller removes.
    pub fn sqlite_in(folder: &Path) -> Self {
        Self { url: format!("sqlite://{}", folder.join("registry.db").display()), kept: None }
    }

    /// Creates an empty database on the PostgreSQL server that `TEST_DATABASE_URL` names.
    pub async fn postgres() -> Self {
        let name = format!("registry_test_{:x}", fastrand::u64(..));
        execute_on_server(format!("CREATE DATABASE {name}")).await;
        let mut url = Url::parse(&server_url()).unwrap();
        url.set_path(&name);
        Self { url: url.into(), kept: Some(Arc::new(Kept::Postgres { name })) }
    }

    pub fn is_postgres(&self) -> bool {
        self.url.starts_with("postgres")
    }

    /// Returns the same database at another address, such as a proxy's. PostgreSQL only.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Self {
        let mut url = Url::parse(&self.url).unwrap();
        url.set_ip_host(address.ip()).unwrap();
        url.set_port(Some(address.port())).unwrap();
        Self { url: url.into(), ..self.clone() }
    }

    /// Returns host and port of the PostgreSQL server.
    pub fn address(&self) -> String {
        let url = Url::parse(&self.url).unwrap();
        format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5_432))
    }

    /// Connects to the database. PostgreSQL only.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    /// Connects to another database of the same PostgreSQL server.
    pub async fn administrator(&self) -> PgConnection {
        let mut url = Url::parse(&self.url).unwrap();
        url.set_path("postgres");
        PgConnection::connect(url.as_str()).await.unwrap()
    }

    async fn open(&self) -> SqliteConnection {
        SqliteConnection::connect(&self.url).await.unwrap()
    }

    /// Runs statements, past the server.
    pub async fn execute(&self, sql: &'static str) {
        if self.is_postgres() {
            self.connect().await.execute(sql).await.unwrap();
        } else {
            self.open().await.execute(sql).await.unwrap();
        }
    }

    /// Returns the single value that a query yields, past the server.
    pub async fn value<T>(&self, query: impl Into<String>) -> T
    where
        T: for<'r> Decode<'r, Postgres>
            + for<'r> Decode<'r, Sqlite>
            + Type<Postgres>
            + Type<Sqlite>
            + Send
            + Unpin,
    {
        let query = AssertSqlSafe(query.into());
        if self.is_postgres() {
            sqlx::query_scalar(query).fetch_one(&mut self.connect().await).await.unwrap()
        } else {
            sqlx::query_scalar(query).fetch_one(&mut self.open().await).await.unwrap()
        }
    }

    /// Returns how many bytes the database takes on disk.
    pub async fn bytes(&self) -> u64 {
        if self.is_postgres() {
            let size: i64 = self.value("SELECT pg_database_size(current_database())").await;
            return size.try_into().unwrap();
        }
        let file = self.url.trim_start_matches("sqlite://");
        let files = ["", "-wal"].map(|end| std::fs::metadata(format!("{file}{end}")));
        files.iter().flatten().map(std::fs::Metadata::len).sum()
    }

    /// Returns the number of the registry's last change.
    pub async fn revision(&self) -> i64 {
        self.value("SELECT revision FROM agent_registry_state").await
    }

    /// Returns whether the database has an agent.
    pub async fn has_row(&self, agent_id: &str) -> bool {
        self.value::<i64>(format!("SELECT count(*) FROM agent_registry WHERE agent_id = '{agent_id}'")).await
            > 0
    }

    /// Returns whether the database has recorded that an agent missed its deadline.
    pub async fn has_missed_deadline(&self, agent_id: &str) -> bool {
        self.value(format!("SELECT missed_deadline FROM agent_registry WHERE agent_id = '{agent_id}'")).await
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Self::Postgres { name } = self else { return };
        let statement = format!("DROP DATABASE {name} WITH (FORCE)");
        // On a thread with a runtime of its own: a drop cannot await, and the test's runtime may be about to end.
        let removal = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(execute_on_server(statement));
        });
        let removed = removal.join();
        // A second panic would abort the process before it says what failed.
        assert!(removed.is_ok() || std::thread::panicking(), "the database was not removed");
    }
}

async fn execute_on_server(statement: String) {
    let mut connection = PgConnection::connect(&server_url()).await.unwrap();
    connection.execute(AssertSqlSafe(statement)).await.unwrap();
}

fn server_url() -> String {
    std::env::var("TEST_DATABASE_URL")
        .expect("TEST_DATABASE_URL names no PostgreSQL server: run ./scripts/test, which starts one")
}
