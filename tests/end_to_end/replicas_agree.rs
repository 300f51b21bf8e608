//! After a random script of writes on two replicas, both are equal to the database.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use registry_sdk::contract::{
    AgentRecord, AgentStatus, Heartbeat, Maintenance, MaintenanceRequest, StatusUpdate,
};
use registry_sdk::{ListQuery, RegistryClient};
use sqlx::{Connection, Executor, Row};

use crate::support::{Database, agent, client, eventually, on_postgres};

on_postgres!(replicas_equal_the_database_after_random_writes);

const AGENTS: u8 = 4;

#[derive(Clone, Debug)]
enum Step {
    Register {
        capability: u8,
        status: AgentStatus,
        /// A process with an age registers.
        process: Option<(u8, Option<u64>)>,
    },
    Beat(Option<AgentStatus>),
    SetStatus(AgentStatus),
    /// A process reports that it was shut down.
    ShutDown(u8),
    /// An operator or a process begins a maintenance.
    SetMaintenance(Option<u8>),
    EndMaintenance,
    Deregister,
    /// Cuts the connections that notify the replicas of each other's changes.
    CutListening,
}

fn status() -> impl Strategy<Value = AgentStatus> {
    prop_oneof![Just(AgentStatus::Active), Just(AgentStatus::Busy), Just(AgentStatus::Offline)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_u8, status(), proptest::option::of((0..3_u8, proptest::option::of(0..3_u64))))
            .prop_map(|(capability, status, process)| Step::Register { capability, status, process }),
        4 => proptest::option::of(status()).prop_map(Step::Beat),
        3 => status().prop_map(Step::SetStatus),
        2 => (0..3_u8).prop_map(Step::ShutDown),
        3 => proptest::option::of(0..3_u8).prop_map(Step::SetMaintenance),
        1 => Just(Step::EndMaintenance),
        2 => Just(Step::Deregister),
        1 => Just(Step::CutListening),
    ]
}

/// Steps, each with its agent, its replica, and whether the script waits for the response.
fn script() -> impl Strategy<Value = Vec<(Step, u8, bool, bool)>> {
    proptest::collection::vec((step(), 0..AGENTS, any::<bool>(), any::<bool>()), 1..60)
}

async fn replicas_equal_the_database_after_random_writes(database: Database) {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
        TestRunner::new(config).run(&script(), |script| {
            runtime.block_on(run(&database, script));
            Ok(())
        })
    })
    .await
    .unwrap()
    .unwrap();
}

async fn run(database: &Database, script: Vec<(Step, u8, bool, bool)>) {
    let mut connection = database.connect().await;
    connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await.unwrap();
    let (one, two) = (database.start().await, database.start().await);
    let clients = [client(&one), client(&two)];
    let mut running = Vec::new();
    for (step, number, on_second, wait) in script {
        if matches!(step, Step::CutListening) {
            let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND query LIKE 'LISTEN%'";
            connection.execute(cut).await.unwrap();
            continue;
        }
        let task = tokio::spawn(take(clients[usize::from(on_second)].clone(), format!("a{number}"), step));
        if wait {
            task.await.unwrap();
        } else {
            running.push(task);
        }
    }
    for task in running {
        task.await.unwrap();
    }
    let stored = stored(&mut connection).await;
    for client in &clients {
        let held = async || summary(client.list_agents(ListQuery::all()).await.unwrap().agents);
        eventually("the replica equals the database", async || held().await == stored).await;
    }
    connection.close().await.unwrap();
    one.shutdown().await;
    two.shutdown().await;
}

async fn take(client: RegistryClient, id: String, step: Step) {
    let outcome = match step {
        Step::Register { capability, status, process } => {
            let mut registration = agent(&id, &format!("capability-{capability}")).status(status);
            if let Some((instance, age)) = process {
                registration = registration.instance_id(format!("i{instance}"));
                registration.instance_age = age.map(|age| Duration::from_secs(age * 1_000));
            }
            client.register(&registration).await.map(|_| ())
        }
        Step::Beat(None) => client.heartbeat(&id).await.map(|_| ()),
        Step::Beat(Some(status)) => {
            client.heartbeat_with(&id, &Heartbeat::default().status(status)).await.map(|_| ())
        }
        Step::SetStatus(status) => client.update_status(&id, status).await.map(|_| ()),
        Step::ShutDown(instance) => {
            let end = StatusUpdate::shut_down(format!("i{instance}"));
            client.update_status_with(&id, &end).await.map(|_| ())
        }
        Step::SetMaintenance(instance) => {
            let mut request = MaintenanceRequest::new("disk upgrade").duration(Duration::from_secs(3_600));
            request.instance_id = instance.map(|instance| format!("i{instance}"));
            client.set_maintenance(&id, &request).await.map(|_| ())
        }
        Step::EndMaintenance => client.end_maintenance(&id).await.map(|_| ()),
        Step::Deregister => client.deregister(&id).await,
        Step::CutListening => Ok(()),
    };
    if let Err(error) = outcome {
        assert!(error.is_not_found() || error.is_superseded(), "{error}");
    }
}

/// Status, capability, process, maintenance and revision of each agent. The last heartbeat is left out: it may lag on the other
/// replica.
type Summary = BTreeMap<String, (AgentStatus, String, Option<String>, Option<Maintenance>, Option<u64>)>;

fn summary(agents: Vec<AgentRecord>) -> Summary {
    let each = agents.into_iter().map(|agent| {
        assert!(agent.heartbeat_timeout >= Some(Duration::from_secs(60)));
        let capability = agent.capabilities[0].name.clone();
        (agent.agent_id, (agent.status, capability, agent.instance_id, agent.maintenance, agent.revision))
    });
    each.collect()
}

async fn stored(connection: &mut sqlx::PgConnection) -> Summary {
    let query =
        "SELECT agent_id, status, capabilities -> 0 ->> 'name', instance_id, revision, maintenance::text
         FROM agent_registry";
    let rows = sqlx::query(query).fetch_all(connection).await.unwrap();
    let status = |row: &sqlx::postgres::PgRow| row.get::<&str, _>(1).parse().unwrap();
    let revision = |row: &sqlx::postgres::PgRow| u64::try_from(row.get::<i64, _>(4)).ok();
    let maintenance = |row: &sqlx::postgres::PgRow| {
        let json = row.get::<Option<&str>, _>(5);
        json.map(|json| serde_json::from_str(json).unwrap())
    };
    let agent = |row| (status(row), row.get(2), row.get(3), maintenance(row), revision(row));
    rows.iter().map(|row| (row.get(0), agent(row))).collect()
}
