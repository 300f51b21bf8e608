//! Log lines of the registry's own changes: one per change, by the server that made it, without flooding the
//! log.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, MaintenanceRequest};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Server, Store, agent, eventually, free_port, on_both};

on_both!(each_change_by_the_registry_is_one_line);
on_both!(edit_by_another_program_is_one_line);
on_both!(many_agents_going_offline_together_are_one_line);
on_both!(probe_outcomes_are_logged);
on_both!(log_lines_of_a_request_contain_its_trace_id);
on_both!(many_agents_failing_their_probes_together_are_few_lines);

/// Returns the log lines of a change, optionally only those about one agent.
fn lines(server: &Server, change: &str, agent_id: Option<&str>) -> Vec<String> {
    let named = agent_id.map(|agent_id| format!("agent_id=\"{agent_id}\"")).unwrap_or_default();
    let is_meant = |line: &&str| line.contains(&format!("change=\"{change}\"")) && line.contains(&named);
    server.log().lines().filter(is_meant).map(str::to_owned).collect()
}

/// Checks that a line names the registry and has the format of changes requested by clients.
fn check(line: &str) {
    for expected in ["INFO", "changed an agent", "revision=", "changed_by=\"(registry)\""] {
        assert!(line.contains(expected), "{expected}: {line}");
    }
}

const OFFLINE: &str = "set the status offline: it missed its deadline";
const OVER: &str = "end maintenance: its time is over";
const REMOVED: &str = "remove: it was offline for longer than --remove-after";
const EDITED: &str = "adopt what another program wrote to the database";
const DELETED: &str = "remove: another program deleted its row";

/// Starts two servers on PostgreSQL, but only one on SQLite.
async fn start_all(store: &Store, flags: &[&str]) -> Vec<Server> {
    let mut servers = vec![Server::running(&store.url, flags).await];
    if store.is_postgres() {
        servers.push(Server::running(&store.url, flags).await);
    }
    servers
}

async fn each_change_by_the_registry_is_one_line(store: Store) {
    let often = ["--sweep-interval", "50ms"];
    let ids: Vec<String> = (0..20).map(|number| format!("agent-{number}")).collect();
    let mut servers = start_all(&store, &often).await;
    let client = servers[0].patient_client();
    for id in &ids {
        client.register(&agent(id, "work")).await.unwrap();
        let short = MaintenanceRequest::new("upgrade").duration(Duration::from_millis(500));
        client.set_maintenance(id, &short).await.unwrap();
    }
    logged_once(&mut servers, &ids, &[OVER]).await;
    let silent = [&["--heartbeat-timeout", "1s", "--remove-after", "1s"], &often[..]].concat();
    let mut servers = start_all(&store, &silent).await;
    logged_once(&mut servers, &ids, &[OFFLINE, REMOVED]).await;
}

/// Waits until the changes of all agents are logged, stops the servers, and checks that each line occurs
/// once.
async fn logged_once(servers: &mut [Server], ids: &[String], changes: &[&str]) {
    let all = |servers: &[Server], change: &str, id: Option<&str>| {
        servers.iter().flat_map(|server| lines(server, change, id)).collect::<Vec<_>>()
    };
    for change in changes {
        let is_logged = async || all(servers, change, None).len() >= ids.len();
        eventually("the changes are logged", is_logged).await;
    }
    for server in &mut *servers {
        server.stop().await;
    }
    for id in ids {
        for change in changes {
            let lines = all(servers, change, Some(id));
            assert_eq!(lines.len(), 1, "{id}, {change}: {lines:?}");
            check(&lines[0]);
            assert!(lines[0].contains("last_heartbeat=2"), "{}", lines[0]);
        }
    }
}

async fn edit_by_another_program_is_one_line(store: Store) {
    let mut server = Server::running(&store.url, &[]).await;
    let client = server.patient_client();
    for id in ["edited", "deleted"] {
        client.register(&agent(id, "work")).await.unwrap();
    }
    store.execute("UPDATE agent_registry SET agent_name = 'Edited' WHERE agent_id = 'edited'").await;
    store.execute("DELETE FROM agent_registry WHERE agent_id = 'deleted'").await;
    // Every change checks the row.
    client.update_status("edited", AgentStatus::Active).await.unwrap();
    assert!(client.update_status("deleted", AgentStatus::Active).await.is_err());
    client.update_status("edited", AgentStatus::Active).await.unwrap();
    // Without a request, the comparison of all rows finds the edit.
    store.execute("UPDATE agent_registry SET agent_name = 'Edited again' WHERE agent_id = 'edited'").await;
    let is_shown = async || client.get_agent("edited").await.unwrap().agent_name == "Edited again";
    eventually("the edit is shown", is_shown).await;
    server.stop().await;
    for (change, id, count) in [(EDITED, "edited", 2), (DELETED, "deleted", 1)] {
        let lines = lines(&server, change, Some(id));
        assert_eq!(lines.len(), count, "{}", server.log());
        for line in &lines {
            check(line);
        }
    }
}

/// Inserts agents that have just sent a heartbeat.
macro_rules! insert_agents {
    ($count:literal, $now:literal) => {
        concat!(
            "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ", $count, ")
             INSERT INTO agent_registry (agent_id, agent_name, base_url, last_heartbeat, registered_at, revision)
             SELECT 'agent-' || n, 'inserted', 'http://agent.example:1', ", $now, ", ", $now, ", 0 FROM number"
        )
    };
}

/// After a start, all agents have the same time to come back.
async fn many_agents_going_offline_together_are_one_line(store: Store) {
    let mut server = Server::new(&store.url, &["--heartbeat-timeout", "1s", "--sweep-interval", "50ms"]);
    server.start().await;
    server.stop().await;
    let is_postgres = store.is_postgres();
    for (insert, expected) in [
        (
            if is_postgres {
                insert_agents!(100, "now()")
            } else {
                insert_agents!(100, "unixepoch() * 1000")
            },
            100,
        ),
        (
            if is_postgres {
                insert_agents!(101, "now()")
            } else {
                insert_agents!(101, "unixepoch() * 1000")
            },
            101,
        ),
    ] {
        store.execute("DELETE FROM agent_registry").await;
        store.execute(insert).await;
        server.start().await;
        eventually("it is logged", async || lines(&server, OFFLINE, None).len() == expected).await;
        server.stop().await;
    }
    let all = lines(&server, OFFLINE, None);
    let (together, each): (Vec<_>, Vec<_>) =
        all.iter().partition(|line| line.contains("changed many agents"));
    assert_eq!((together.len(), each.len()), (1, 100), "{all:?}");
    for expected in [
        "INFO",
        "agents=101",
        "first_revision=",
        "last_revision=",
        "first_agent_ids=\"agent-",
        "changed_by=\"(registry)\"",
    ] {
        assert!(together[0].contains(expected), "{expected}: {}", together[0]);
    }
    assert_eq!(together[0].matches("agent-").count(), 10);
}

async fn probe_outcomes_are_logged(store: Store) {
    let flags = ["--probe-interval", "100ms", "--probe-timeout", "60s", "--probe-allow", "127.0.0.1/32"];
    let mut server = Server::running(&store.url, &flags).await;
    let client = server.patient_client();
    let port = free_port();
    let mut registration = agent("a", "work");
    registration.base_url = format!("http://127.0.0.1:{port}");
    client.register(&registration).await.unwrap();
    let failed = "mark unhealthy: its probes failed";
    eventually("it fails", async || !lines(&server, failed, Some("a")).is_empty()).await;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let answering = tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 1_024];
            let _ = connection.read(&mut request).await;
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let healed = "mark healthy: its probe succeeded";
    eventually("it is well", async || !lines(&server, healed, Some("a")).is_empty()).await;
    server.stop().await;
    answering.abort();
    for change in [failed, healed] {
        let lines = lines(&server, change, Some("a"));
        assert_eq!(lines.len(), 1, "{}", server.log());
        check(&lines[0]);
        assert_eq!(lines[0].contains("detail="), change == failed, "{}", lines[0]);
    }
}

async fn log_lines_of_a_request_contain_its_trace_id(store: Store) {
    let mut server = Server::running(&store.url, &["--access-log"]).await;
    server.patient_client().register(&agent("a", "work")).await.unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let send = async |request_id: &str, agent_id: &str, traceparents: &[&str]| {
        let request = http.put(format!("{}/agents/{agent_id}/status", server.url()));
        let mut request = request.header("content-type", "application/json").body(r#"{"status":"busy"}"#);
        for traceparent in traceparents {
            request = request.header("traceparent", *traceparent);
        }
        request.header("x-request-id", request_id).send().await.unwrap().status()
    };
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let valid = format!("00-{trace}-b7ad6b7169203331-01");
    assert_eq!(send("changed", "a", &[&valid]).await, 200);
    assert_eq!(send("later", "a", &[&format!("cc{}-more", &valid[2..])]).await, 200);
    assert_eq!(send("refused", "unknown", &[&valid]).await, 404);
    assert_eq!(send("not-valid", "a", &[&valid.to_uppercase()]).await, 200);
    assert_eq!(send("twice", "a", &[&valid, &valid]).await, 200);
    assert_eq!(send("none", "a", &[]).await, 200);
    server.stop().await;
    for (request_id, count) in
        [("changed", 2), ("later", 2), ("refused", 2), ("not-valid", 0), ("twice", 0), ("none", 0)]
    {
        let log = server.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&format!("\"{request_id}\""))).collect();
        let (change, access) = ("an agent ", "request finished");
        for kind in [change, access] {
            assert!(lines.iter().any(|line| line.contains(kind)), "{kind}: {log}");
        }
        let traced = lines.iter().filter(|line| line.contains(&format!("trace_id=\"{trace}\"")));
        assert_eq!(traced.count(), count, "{request_id}: {lines:#?}");
        assert_eq!(lines.len(), 2, "{lines:#?}");
    }
}

async fn many_agents_failing_their_probes_together_are_few_lines(store: Store) {
    let insert = if store.is_postgres() {
        insert_agents!(1000, "now()")
    } else {
        insert_agents!(1000, "unixepoch() * 1000")
    };
    let flags = ["--probe-interval", "100ms", "--probe-allow", "127.0.0.1/32", "--heartbeat-timeout", "1h"];
    let mut server = Server::new(&store.url, &flags);
    server.start().await;
    server.stop().await;
    store.execute(insert).await;
    store.execute("UPDATE agent_registry SET base_url = 'http://127.0.0.1:1'").await;
    server.start().await;
    // Returns the number of agents in a line.
    let agents = |line: &String| {
        let number = line.split_once(" agents=").and_then(|(_, rest)| rest.split(' ').next());
        number.map_or(1, |number| number.parse::<usize>().unwrap())
    };
    let lines = |server: &Server| lines(server, "mark unhealthy: its probes failed", None);
    let is_logged = async || lines(&server).iter().map(agents).sum::<usize>() >= 1_000;
    eventually("every agent is logged", is_logged).await;
    server.stop().await;
    let all = lines(&server);
    assert_eq!(all.iter().map(agents).sum::<usize>(), 1_000);
    let together: Vec<_> = all.iter().filter(|line| line.contains("changed many agents")).collect();
    assert!(!together.is_empty(), "{} lines", all.len());
    let number = |line: &str, name: &str| -> i64 {
        line.split_once(name).unwrap().1.split(' ').next().unwrap().parse().unwrap()
    };
    for line in together {
        assert!(number(line, "first_revision=") < number(line, "last_revision="), "{line}");
    }
}
