//! Servers, databases and faults for the tests.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::{RegistryClient, RetryPolicy};
use registry_server::{Config, Server};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Makes a test on each database of every named `async fn(Database)`.
macro_rules! on_both_databases {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let database = crate::support::Database::sqlite();
                database.run(super::$name).await;
            })*
        }
        crate::support::on_postgres!($($name),*);
    };
}

/// The same on PostgreSQL alone, for what only several servers can do.
macro_rules! on_postgres {
    ($($name:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let database = crate::support::Database::postgres().await;
                database.run(super::$name).await;
            })*
        }
    };
}
pub(crate) use {on_both_databases, on_postgres};

/// A database of the test's own.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) url: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Sqlite { _folder: Arc<tempfile::TempDir> },
    Postgres { name: String },
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("registry.db").display());
        Self { url, kind: Kind::Sqlite { _folder: Arc::new(folder) } }
    }

    pub(crate) async fn postgres() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("registry_test_{}_{number}", std::process::id());
        let mut url = url::Url::parse(&postgres_url()).unwrap();
        let mut connection = PgConnection::connect(url.as_str()).await.unwrap();
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        url.set_path(&name);
        Self { url: url.into(), kind: Kind::Postgres { name } }
    }

    /// Runs a test, and removes the database afterwards, also where the test failed.
    pub(crate) async fn run<F: Future<Output = ()>>(self, test: impl FnOnce(Self) -> F) {
        let outcome = AssertUnwindSafe(test(self.clone())).catch_unwind().await;
        if let Kind::Postgres { name } = &self.kind {
            let mut connection = PgConnection::connect(&postgres_url()).await.unwrap();
            let drop = format!("DROP DATABASE {name} WITH (FORCE)");
            connection.execute(AssertSqlSafe(drop)).await.unwrap();
        }
        if let Err(failed) = outcome {
            std::panic::resume_unwind(failed);
        }
    }

    /// A server on it with short times, so that a test of deadlines is soon over.
    pub(crate) async fn start(&self) -> Server {
        self.start_with(|_| {}).await
    }

    pub(crate) async fn start_with(&self, change: impl FnOnce(&mut Config)) -> Server {
        let mut config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            database_url: self.url.clone(),
            sweep_interval: Duration::from_millis(100),
            ..Config::default()
        };
        change(&mut config);
        Server::bind(config).await.unwrap()
    }

    /// Whether the database itself says that an agent missed its deadline.
    pub(crate) async fn has_missed_deadline(&self, agent_id: &str) -> bool {
        const QUERY: &str = "SELECT missed_deadline FROM agent_registry WHERE agent_id = $1";
        match self.kind {
            Kind::Sqlite { .. } => {
                let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
                sqlx::query_scalar(QUERY).bind(agent_id).fetch_one(&mut connection).await.unwrap()
            }
            Kind::Postgres { .. } => {
                let mut connection = self.connect().await;
                sqlx::query_scalar(QUERY).bind(agent_id).fetch_one(&mut connection).await.unwrap()
            }
        }
    }

    /// A connection to the database itself, which has to be PostgreSQL.
    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }
}

fn postgres_url() -> String {
    std::env::var("TEST_DATABASE_URL")
        .expect("TEST_DATABASE_URL names no PostgreSQL: run ./scripts/test, which starts one")
}

/// A client that gives its errors at once.
pub(crate) fn client(server: &Server) -> RegistryClient {
    RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap()
}

/// A plain agent that can do one thing.
pub(crate) fn agent(agent_id: &str, capability: &str) -> Registration {
    Registration::new(agent_id, format!("Agent {agent_id}"), format!("http://agents.example:8000/{agent_id}"))
        .capability(Capability::new(capability))
}

/// Waits until something holds; fails where it does not within half a minute, which only a defect takes.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let held = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    assert!(held.is_ok(), "never happened: {what}");
}

pub(crate) async fn status_of(client: &RegistryClient, agent_id: &str) -> AgentStatus {
    client.get_agent(agent_id).await.unwrap().status
}

/// A TCP proxy in front of the database, which can cut it off.
pub(crate) struct Proxy {
    address: SocketAddr,
    open: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn before(database: &Database) -> Self {
        let options = PgConnectOptions::from_str(&database.url).unwrap();
        let target = (options.get_host().to_owned(), options.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = watch::Sender::new(true);
        let mut tasks = JoinSet::new();
        let gate = open.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let mut gate = gate.subscribe();
                let target = target.clone();
                connections.spawn(async move {
                    if !*gate.borrow() {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(target).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = gate.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { address, open, tasks }
    }

    /// The database, through the proxy.
    pub(crate) fn through(&self, database: &Database) -> Database {
        let mut url = url::Url::parse(&database.url).unwrap();
        url.set_ip_host(self.address.ip()).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        Database { url: url.into(), kind: database.kind.clone() }
    }

    /// Cuts all connections, and refuses new ones until it is mended.
    pub(crate) fn cut(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}
