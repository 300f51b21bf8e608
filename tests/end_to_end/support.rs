//! Servers, databases and faults for the tests.

use std::net::SocketAddr;
use std::ops::Deref;
use std::time::Duration;

use registry_sdk::contract::AgentStatus;
use registry_sdk::testing::{FaultProxy, MockRegistry};
use registry_sdk::{RegistryClient, RegistryClientBuilder, RetryPolicy};
use registry_server::{Config, Server};
pub(crate) use test_support::{LONG, NEVER, agent, eventually, lasting_address};
use test_support::{patient_client, start_server};

/// Makes a test on each database and on the mock registry of every named `async fn(Database)`, so that the mock behaves like the
/// server.
macro_rules! on_every_registry {
    ($($name:ident),* $(,)?) => {
        mod mock {
            $(#[tokio::test]
            async fn $name() {
                crate::support::Database::Mock.run(super::$name).await;
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

/// Makes a test on PostgreSQL of every named `async fn(Database)`, for tests that need several servers.
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

/// A database that a test has to itself, or none.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    Stored(test_support::Database),
    /// No database: the test runs on the mock registry.
    Mock,
}

impl Deref for Database {
    type Target = test_support::Database;

    fn deref(&self) -> &Self::Target {
        let Self::Stored(database) = self else { unreachable!("the mock has no database") };
        database
    }
}

/// A running registry.
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
        Self::Stored(test_support::Database::sqlite())
    }

    pub(crate) async fn postgres() -> Self {
        Self::Stored(test_support::Database::postgres().await)
    }

    /// Runs a test, which fails if it hangs.
    pub(crate) async fn run<F: Future<Output = ()>>(self, test: impl FnOnce(Self) -> F) {
        tokio::time::timeout(2 * LONG, test(self)).await.expect("the test hangs");
    }

    /// Starts a server that sweeps often. Unless the test says otherwise, no agent misses its deadline.
    pub(crate) async fn start(&self) -> Registry {
        self.start_with(|_| {}).await
    }

    pub(crate) async fn start_with(&self, change: impl FnOnce(&mut Config)) -> Registry {
        let change = |config: &mut Config| {
            config.sweep_interval = Duration::from_millis(100);
            change(config);
        };
        match self {
            Self::Mock => {
                let mut config = Config { heartbeat_timeout: NEVER, ..Config::default() };
                change(&mut config);
                let mock = MockRegistry::builder().heartbeat_timeout(config.heartbeat_timeout);
                Registry::Mock(mock.start().await)
            }
            Self::Stored(database) => Registry::Server(
                start_server(|config| {
                    config.database_url.clone_from(&database.url);
                    change(config);
                })
                .await,
            ),
        }
    }

    /// Makes the agent `a` busy like an older server, whose statements and events lack `maintenance` and `changed_by`.
    ///
    /// The last change in the database must be one of `a`. PostgreSQL only.
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

    /// Returns the same database through a proxy.
    pub(crate) fn through(&self, proxy: &FaultProxy) -> Self {
        Self::Stored(self.at(proxy.address()))
    }
}

/// Returns a client that retries while the server is overloaded or its database does not answer: either may happen for a moment
/// on a busy machine.
pub(crate) fn client(server: &Registry) -> RegistryClient {
    patient_client(&server.url())
}

/// Returns a client that reports every error at once, and waits for a response as long as it takes.
pub(crate) fn impatient_client(server: &Registry) -> RegistryClient {
    test_support::impatient_client(&server.url())
}

/// Returns a builder for an impatient client.
pub(crate) fn client_builder(url: impl Into<String>) -> RegistryClientBuilder {
    RegistryClient::builder(url).timeout(LONG).retry(RetryPolicy::none())
}

pub(crate) async fn status_of(client: &RegistryClient, agent_id: &str) -> AgentStatus {
    client.get_agent(agent_id).await.unwrap().status
}

/// Starts a proxy in front of the database.
pub(crate) async fn proxy_before(database: &Database) -> FaultProxy {
    FaultProxy::start(database.address()).await
}
