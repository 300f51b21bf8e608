//! A database for one scenario.

use std::path::Path;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};

#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) url: String,
    /// The folder of the SQLite file, removed with this.
    #[expect(dead_code, reason = "kept alive")]
    folder: Option<Arc<tempfile::TempDir>>,
}

impl Store {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { url: Self::sqlite_in(folder.path()).url, folder: Some(Arc::new(folder)) }
    }

    /// Returns a database file in the given folder.
    pub(crate) fn sqlite_in(folder: &Path) -> Self {
        Self { url: format!("sqlite://{}", folder.join("registry.db").display()), folder: None }
    }

    /// Creates a database on the server provided by the test script.
    pub(crate) async fn postgres() -> Self {
        let server = std::env::var("TEST_DATABASE_URL").expect("TEST_DATABASE_URL: run ./scripts/test");
        let name = format!("registry_torture_{:x}", fastrand::u64(..));
        let mut connection = PgConnection::connect(&server).await.unwrap();
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        let mut url = url::Url::parse(&server).unwrap();
        url.set_path(&name);
        Self { url: url.into(), folder: None }
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.url.starts_with("postgres")
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    /// Runs statements directly on the database.
    pub(crate) async fn execute(&self, sql: &'static str) {
        if self.is_postgres() {
            self.connect().await.execute(sql).await.unwrap();
        } else {
            self.open().await.execute(sql).await.unwrap();
        }
    }

    /// Returns the revision of the registry's last change.
    pub(crate) async fn revision(&self) -> i64 {
        const QUERY: &str = "SELECT revision FROM agent_registry_state";
        if self.is_postgres() {
            sqlx::query_scalar(QUERY).fetch_one(&mut self.connect().await).await.unwrap()
        } else {
            sqlx::query_scalar(QUERY).fetch_one(&mut self.open().await).await.unwrap()
        }
    }

    pub(crate) async fn has_row(&self, agent_id: &str) -> bool {
        const QUERY: &str = "SELECT count(*) FROM agent_registry WHERE agent_id = $1";
        let rows: i64 = if self.is_postgres() {
            sqlx::query_scalar(QUERY).bind(agent_id).fetch_one(&mut self.connect().await).await.unwrap()
        } else {
            sqlx::query_scalar(QUERY).bind(agent_id).fetch_one(&mut self.open().await).await.unwrap()
        };
        rows > 0
    }

    /// Whether the agent's row says that it missed its deadline.
    pub(crate) async fn missed_deadline(&self, agent_id: &str) -> bool {
        const QUERY: &str = "SELECT missed_deadline FROM agent_registry WHERE agent_id = $1";
        if self.is_postgres() {
            sqlx::query_scalar(QUERY).bind(agent_id).fetch_one(&mut self.connect().await).await.unwrap()
        } else {
            sqlx::query_scalar(QUERY).bind(agent_id).fetch_one(&mut self.open().await).await.unwrap()
        }
    }

    /// Opens the SQLite file beside the server that uses it.
    async fn open(&self) -> SqliteConnection {
        SqliteConnection::connect(&self.url).await.unwrap()
    }

    /// Returns the size on disk in bytes.
    pub(crate) async fn bytes(&self) -> u64 {
        if self.is_postgres() {
            let size = "SELECT pg_database_size(current_database())";
            let size: i64 = sqlx::query_scalar(size).fetch_one(&mut self.connect().await).await.unwrap();
            return size.try_into().unwrap();
        }
        let file = self.url.trim_start_matches("sqlite://");
        ["", "-wal"]
            .iter()
            .filter_map(|end| std::fs::metadata(format!("{file}{end}")).ok())
            .map(|file| file.len())
            .sum()
    }

    /// Returns a connection to another database of the same server.
    pub(crate) async fn administrator(&self) -> PgConnection {
        let mut url = url::Url::parse(&self.url).unwrap();
        url.set_path("postgres");
        PgConnection::connect(url.as_str()).await.unwrap()
    }

    /// Drops the PostgreSQL database. A SQLite file is removed with its folder.
    pub(crate) async fn remove(self) {
        let url = url::Url::parse(&self.url).unwrap();
        let name = url.path().trim_start_matches('/');
        let mut connection = self.administrator().await;
        connection.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await.unwrap();
    }
}
