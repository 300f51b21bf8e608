//! Servers, databases and faults for the tests.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::testing::{FaultProxy, MockRegistry};
use registry_sdk::{RegistryClient, RegistryClientBuilder, RetryPolicy};
use registry_server::{Config, Server};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection};

/// Makes a test on each database, and on the mock registry, of every named `async fn(Database)`: what the mock
/// promises is what the server does.
macro_rules! on_every_registry {
    ($($name:ident),* $(,)?) => {
        mod mock {
            $(#[tokio::test]
            async fn $name() {
                crate::support::Database::mock().run(super::$name).await;
            })*
        }
        crate::support::on_both_databases!($($name),*);
    };
}

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
pub(crate) use {on_both_databases, on_every_registry, on_postgres};

/// Limit of everything that a test waits for. Only a defect takes so long, however busy the machine is.
pub(crate) const LONG: Duration = Duration::from_secs(300);

/// Longer than any test takes: nobody is offline because the machine is busy.
pub(crate) const NEVER: Duration = Duration::from_secs(3_600);

/// A database of the test's own.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) url: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Sqlite {
        _folder: Arc<tempfile::TempDir>,
    },
    Postgres {
        name: String,
    },
    /// None at all: the mock registry keeps its agents in memory.
    Mock,
}

/// A registry that runs.
pub(crate) enum Registry {
    Server(Server),
    Mock(MockRegistry),
}

impl Registry {
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Server(server) => server.url(),
            Self::Mock(mock) => mock.url(),
        }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.url().rsplit('/').next().unwrap().parse().unwrap()
    }

    pub(crate) async fn shutdown(self) {
        if let Self::Server(server) = self {
            server.shutdown().await;
        }
    }
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("registry.db").display());
        Self { url, kind: Kind::Sqlite { _folder: Arc::new(folder) } }
    }

    pub(crate) fn mock() -> Self {
        Self { url: String::new(), kind: Kind::Mock }
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
        // What hangs fails.
        let bounded = tokio::time::timeout(2 * LONG, test(self.clone()));
        let outcome = AssertUnwindSafe(bounded.map(|ended| ended.expect("it hangs"))).catch_unwind().await;
        if let Kind::Postgres { name } = &self.kind {
            let mut connection = PgConnection::connect(&postgres_url()).await.unwrap();
            let drop = format!("DROP DATABASE {name} WITH (FORCE)");
            connection.execute(AssertSqlSafe(drop)).await.unwrap();
        }
        if let Err(failed) = outcome {
            std::panic::resume_unwind(failed);
        }
    }

    /// A server on it that sweeps often. Unless the test says otherwise, nobody misses a deadline.
    pub(crate) async fn start(&self) -> Registry {
        self.start_with(|_| {}).await
    }

    pub(crate) async fn start_with(&self, change: impl FnOnce(&mut Config)) -> Registry {
        let mut config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            database_url: self.url.clone(),
            heartbeat_timeout: NEVER,
            sweep_interval: Duration::from_millis(100),
            ..Config::default()
        };
        change(&mut config);
        match self.kind {
            Kind::Mock => Registry::Mock(
                MockRegistry::builder().heartbeat_timeout(config.heartbeat_timeout).start().await,
            ),
            _ => Registry::Server(Server::bind(config).await.unwrap()),
        }
    }

    /// Whether the database itself says that an agent missed its deadline.
    pub(crate) async fn has_missed_deadline(&self, agent_id: &str) -> bool {
        const QUERY: &str = "SELECT missed_deadline FROM agent_registry WHERE agent_id = $1";
        match self.kind {
            Kind::Sqlite { .. } => {
                let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
                sqlx::query_scalar(QUERY).bind(agent_id).fetch_one(&mut connection).await.unwrap()
            }
            Kind::Mock => unreachable!("the mock has no database"),
            Kind::Postgres { .. } => {
                let mut connection = self.connect().await;
                sqlx::query_scalar(QUERY).bind(agent_id).fetch_one(&mut connection).await.unwrap()
            }
        }
    }

    /// A text, or nothing, from the database itself.
    pub(crate) async fn text(&self, query: &'static str) -> Option<String> {
        match self.kind {
            Kind::Sqlite { .. } => {
                let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
                sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap()
            }
            Kind::Mock => unreachable!("the mock has no database"),
            Kind::Postgres { .. } => {
                sqlx::query_scalar(query).fetch_one(&mut self.connect().await).await.unwrap()
            }
        }
    }

    /// Makes the agent `a` busy, as a server does that does not know the columns `maintenance` and `changed_by`: it leaves them
    /// out of its statements and events. The agent's own last change has to be the last of all. PostgreSQL only.
    pub(crate) async fn make_busy_as_an_older_server(&self) {
        self.execute(
            "WITH head AS (
                 UPDATE agent_registry_state SET revision = revision + 1, mark = 7 RETURNING revision
             ), put AS (
                 UPDATE agent_registry SET status = 'busy', revision = head.revision FROM head WHERE agent_id = 'a'
             )
             INSERT INTO agent_registry_event (revision, mark, kind, agent_id, agent, at)
             SELECT head.revision, 7, 'status_changed', 'a',
                 (last.agent::jsonb - 'maintenance' - 'changed_by' || jsonb_build_object('status', 'busy', 'revision', head.revision))::json,
                 now()
             FROM head, agent_registry_event AS last WHERE last.revision = head.revision - 1",
        )
        .await;
    }

    /// Runs a statement on the database itself.
    pub(crate) async fn execute(&self, sql: &'static str) {
        match self.kind {
            Kind::Sqlite { .. } => {
                let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
                connection.execute(sql).await.unwrap();
            }
            Kind::Mock => unreachable!("the mock has no database"),
            Kind::Postgres { .. } => {
                self.connect().await.execute(sql).await.unwrap();
            }
        }
    }

    /// The same database, through a proxy.
    pub(crate) fn through(&self, proxy: &FaultProxy) -> Self {
        let mut url = url::Url::parse(&self.url).unwrap();
        url.set_ip_host(proxy.address().ip()).unwrap();
        url.set_port(Some(proxy.address().port())).unwrap();
        Self { url: url.into(), kind: self.kind.clone() }
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

/// A client that tries again while the server is overloaded or its database does not answer: on a busy machine either may
/// be so for a moment.
pub(crate) fn client(server: &Registry) -> RegistryClient {
    let patient = RetryPolicy::discovery().attempts(1_000).time_limit(LONG);
    impatient_client(server).with_retry(patient)
}

/// A client that gives its errors at once, and waits for its answers as long as it takes.
pub(crate) fn impatient_client(server: &Registry) -> RegistryClient {
    client_builder(server.url()).build().unwrap()
}

/// The same, for a test that needs more settings.
pub(crate) fn client_builder(url: impl Into<String>) -> RegistryClientBuilder {
    RegistryClient::builder(url).timeout(LONG).retry(RetryPolicy::none())
}

/// An address that a server can be started at again: the system gives such a port to nobody else meanwhile.
pub(crate) fn lasting_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below the ports of outgoing connections. Other runs of the tests begin elsewhere.
    let first = 10_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    std::iter::repeat_with(|| {
        SocketAddr::from(([127, 0, 0, 1], first + NEXT.fetch_add(1, Ordering::Relaxed)))
    })
    .find(|address| std::net::TcpListener::bind(address).is_ok())
    .unwrap()
}

/// A plain agent that can do one thing.
pub(crate) fn agent(agent_id: &str, capability: &str) -> Registration {
    Registration::new(agent_id, format!("Agent {agent_id}"), format!("http://agents.example:8000/{agent_id}"))
        .capability(Capability::new(capability))
}

/// Waits until something holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let held = tokio::time::timeout(LONG, waiting).await;
    assert!(held.is_ok(), "never happened: {what}");
}

pub(crate) async fn status_of(client: &RegistryClient, agent_id: &str) -> AgentStatus {
    client.get_agent(agent_id).await.unwrap().status
}

/// A proxy in front of the database.
pub(crate) async fn proxy_before(database: &Database) -> FaultProxy {
    let options = PgConnectOptions::from_str(&database.url).unwrap();
    FaultProxy::start(format!("{}:{}", options.get_host(), options.get_port())).await
}
