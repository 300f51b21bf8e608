//! A database of a scenario's own.

use std::path::Path;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) url: String,
    /// SQLite's own, which goes with this.
    #[expect(dead_code, reason = "it is held")]
    folder: Option<Arc<tempfile::TempDir>>,
}

impl Store {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { url: Self::sqlite_in(folder.path()).url, folder: Some(Arc::new(folder)) }
    }

    /// A file in somebody else's folder.
    pub(crate) fn sqlite_in(folder: &Path) -> Self {
        Self { url: format!("sqlite://{}", folder.join("registry.db").display()), folder: None }
    }

    /// A new database on the server that the tests are given.
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

    /// How many bytes it takes on disk.
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

    /// Drops the database; SQLite's file goes with its folder.
    pub(crate) async fn remove(self) {
        let mut url = url::Url::parse(&self.url).unwrap();
        let name = url.path().trim_start_matches('/').to_owned();
        url.set_path("postgres");
        let mut connection = PgConnection::connect(url.as_str()).await.unwrap();
        connection.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await.unwrap();
    }
}
