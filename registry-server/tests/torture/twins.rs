//! Several real processes with one agent id: superseded, killed, started against a dead registry, or shut
//! down in the middle of a retry; and a registry that is restored from a backup under them.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use registry_sdk::contract::{AgentRecord, AgentStatus, Capability, Registration};
use registry_sdk::{Agent, RegistryClient, RetryPolicy};
use sqlx::Executor;
use test_support::Process;

use crate::support::{LONG, Server, Store, eventually, length, on_both};

on_both!(superseded_process_does_not_take_the_id_back);
on_both!(old_process_takes_over_from_a_killed_one);
on_both!(younger_process_wins_after_the_registry_was_dead);
on_both!(younger_process_wins_after_the_registry_hung);
on_both!(shutdown_during_a_retry_is_final);
on_both!(agent_registers_again_at_a_restored_registry);

const INTERVAL: Duration = Duration::from_millis(500);

const FLAGS: [&str; 2] = ["--sweep-interval", "200ms"];

/// Age difference between the processes if neither has registered before.
///
/// Longer than the delay of a request, even on a busy machine. Not needed if the older process registers
/// before the younger one starts.
const YOUNGER_BY: Duration = Duration::from_secs(3);

/// A process with the agent `a` that obeys commands on standard input. Killed on drop.
struct Twin {
    child: Process,
    commands: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Twin {
    fn start(url: &str, name: &str, mode: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "twins::process_of_one_agent", "--ignored", "--nocapture"])
            .envs([("TWIN_REGISTRY", url), ("TWIN_NAME", name), ("TWIN_MODE", mode)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = Process::spawn(&mut command);
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let said = output
                .lines()
                .map_while(Result::ok)
                .filter_map(|line| line.split_once("twin: ").map(|(_, said)| said.to_owned()));
            for line in said {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let twin = Self { commands: child.stdin.take(), child, lines };
        twin.says("ready");
        twin
    }

    /// Waits until the process prints a line, skipping other lines.
    fn says(&self, wanted: &str) {
        let mut said = Vec::new();
        while said.last().is_none_or(|last| last != wanted) {
            let line = self.lines.recv_timeout(LONG);
            said.push(line.unwrap_or_else(|_| panic!("it did not say {wanted:?}, but {said:?}")));
        }
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.commands.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Sends a command, and waits for its outcome.
    fn asked(&mut self, command: &str, answer: &str) {
        self.tell(command);
        self.says(&format!("{command}: {answer}"));
    }

    fn kill(&mut self) {
        self.child.kill();
    }
}

async fn record(client: &RegistryClient) -> AgentRecord {
    client.get_agent("a").await.unwrap()
}

async fn owner_is(client: &RegistryClient, name: &str) -> Duration {
    eventually(&format!("{name} owns the id"), async || {
        let record = client.get_agent("a").await;
        record.is_ok_and(|record| record.capabilities[0].name == name && record.status == AgentStatus::Active)
    })
    .await
}

/// Checks that nothing changes for the time of some heartbeats.
async fn stays(client: &RegistryClient, name: &str) {
    let until = Instant::now() + 4 * INTERVAL;
    while Instant::now() < until {
        let record = record(client).await;
        assert_eq!((record.capabilities[0].name.as_str(), record.status), (name, AgentStatus::Active));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A superseded process does not take the id back, whether or not it knows that it is superseded.
async fn superseded_process_does_not_take_the_id_back(store: Store) {
    let mut server = Server::running(&store.url, &FLAGS).await;
    let client = server.patient_client();
    let mut old = Twin::start(&server.url(), "old", "beat");
    old.says("registered");
    let new = Twin::start(&server.url(), "new", "beat");
    old.says("superseded");
    for command in ["update old", "register"] {
        old.asked(command, "superseded");
    }
    stays(&client, "new").await;

    // The same through an outage: the third process starts during the outage, and the second one does not
    // know it.
    let mut new = new;
    server.kill();
    new.says("degraded");
    let third = Twin::start(&server.url(), "third", "beat");
    server.start().await;
    new.tell("update new");
    new.says("superseded");
    owner_is(&client, "third").await;
    stays(&client, "third").await;
    for twin in [&mut old, &mut new] {
        twin.asked("register", "superseded");
    }
    drop(third);
    println!("two superseded processes tried to take the id back, and did not");
}

/// If the new process of a rollout dies, the old one takes over.
async fn old_process_takes_over_from_a_killed_one(store: Store) {
    let mut server = Server::running(&store.url, &FLAGS).await;
    let client = server.patient_client();
    let old = Twin::start(&server.url(), "old", "beat");
    old.says("registered");
    let mut new = Twin::start(&server.url(), "new", "beat");
    owner_is(&client, "new").await;
    old.says("superseded");
    new.kill();
    // Start to count silence.
    server.stop().await;
    server.set("REGISTRY_HEARTBEAT_TIMEOUT", "2s");
    server.start().await;
    eventually("it is offline", async || record(&client).await.status == AgentStatus::Offline).await;
    let took = owner_is(&client, "old").await;
    old.says("registered");
    println!(
        "the old process took over {took:.1?} after the new one was offline, with {INTERVAL:?} intervals"
    );
}

/// Waits until the younger process wins, once both have found the registry, and ends them.
async fn younger_wins(client: &RegistryClient, old: Twin, new: Twin) {
    new.says("registered");
    owner_is(client, "new").await;
    old.says("superseded");
    stays(client, "new").await;
    drop((old, new));
    client.deregister("a").await.unwrap();
}

/// The younger process also wins if the registry hangs while both start, and then reads their earlier
/// requests.
async fn younger_process_wins_after_the_registry_hung(store: Store) {
    let server = Server::running(&store.url, &FLAGS).await;
    let client = server.patient_client();
    let trials = length(20, 2);
    for _ in 0..trials {
        server.signal("STOP");
        let old = Twin::start(&server.url(), "old", "beat");
        old.says("degraded");
        tokio::time::sleep(YOUNGER_BY).await;
        let new = Twin::start(&server.url(), "new", "beat");
        new.says("degraded");
        server.signal("CONT");
        younger_wins(&client, old, new).await;
    }
    println!("the younger process won in {trials} of {trials} trials against a registry that hung");
}

/// The younger process wins, in whatever order the two find the registry.
async fn younger_process_wins_after_the_registry_was_dead(store: Store) {
    let mut server = Server::running(&store.url, &FLAGS).await;
    let client = server.patient_client();
    let trials = length(60, 2);
    for trial in 0..trials {
        let runs_through = trial % 2 == 0;
        if !runs_through {
            server.kill();
        }
        let old = Twin::start(&server.url(), "old", "beat");
        if runs_through {
            old.says("registered");
            server.kill();
        }
        old.says("degraded");
        if !runs_through {
            tokio::time::sleep(YOUNGER_BY).await;
        }
        let new = Twin::start(&server.url(), "new", "beat");
        new.says("degraded");
        server.start().await;
        younger_wins(&client, old, new).await;
    }
    println!("the younger process won in {trials} of {trials} trials");
}

/// A shutdown in the middle of a retry is final.
async fn shutdown_during_a_retry_is_final(store: Store) {
    let mut server = Server::running(&store.url, &FLAGS).await;
    let client = server.patient_client();
    for round in 0..length(20, 2) {
        let mut agent = Twin::start(&server.url(), "agent", "beat");
        agent.says("registered");
        server.kill();
        agent.says("degraded");
        // Retried for a minute.
        agent.tell("update changed");
        if round % 2 == 0 {
            server.start().await;
        }
        agent.asked("shutdown", "over");
        if round % 2 == 1 {
            server.start().await;
        }
        let before = record(&client).await;
        tokio::time::sleep(4 * INTERVAL).await;
        let after = record(&client).await;
        assert_eq!(after.last_heartbeat, before.last_heartbeat, "it was heard after its shutdown");
        assert_eq!(after.capabilities, before.capabilities);
        drop(agent);
        client.deregister("a").await.unwrap();
    }
    println!("nothing arrived after a shutdown in the middle of a retry");
}

/// The registry is restored from a backup that is older than the agent's last registration.
async fn agent_registers_again_at_a_restored_registry(store: Store) {
    let mut server = Server::running(&store.url, &FLAGS).await;
    let client = server.patient_client();
    let mut agent = Twin::start(&server.url(), "older", "beat");
    agent.says("registered");
    server.stop().await;
    let backup = Backup::of(&store).await;
    server.start().await;
    agent.asked("update newer", "ok");
    owner_is(&client, "newer").await;
    server.stop().await;
    backup.restore(&store).await;
    server.start().await;
    let took = owner_is(&client, "newer").await;
    stays(&client, "newer").await;
    println!("{took:.1?} after the restored registry was there it had the latest registration again");
}

/// A backup of an unused database.
enum Backup {
    Sqlite(Vec<(String, Vec<u8>)>),
    /// Copies of the tables, in a separate schema.
    Postgres,
}

impl Backup {
    const TABLES: [&str; 3] = ["agent_registry", "agent_registry_state", "agent_registry_event"];

    async fn of(store: &Store) -> Self {
        if store.is_postgres() {
            let mut connection = store.connect().await;
            connection.execute("CREATE SCHEMA backup").await.unwrap();
            for table in Self::TABLES {
                let copy = format!("CREATE TABLE backup.{table} AS TABLE {table}");
                connection.execute(sqlx::AssertSqlSafe(copy)).await.unwrap();
            }
            return Self::Postgres;
        }
        let files = Self::files(store);
        Self::Sqlite(files.filter_map(|file| Some((file.clone(), std::fs::read(file).ok()?))).collect())
    }

    async fn restore(self, store: &Store) {
        match self {
            Self::Postgres => {
                let mut connection = store.connect().await;
                for table in Self::TABLES {
                    let replace =
                        format!("TRUNCATE {table}; INSERT INTO {table} SELECT * FROM backup.{table}");
                    connection.execute(sqlx::AssertSqlSafe(replace)).await.unwrap();
                }
            }
            Self::Sqlite(kept) => {
                Self::files(store).for_each(|file| drop(std::fs::remove_file(file)));
                for (file, bytes) in kept {
                    std::fs::write(file, bytes).unwrap();
                }
            }
        }
    }

    fn files(store: &Store) -> impl Iterator<Item = String> {
        let file = store.url.trim_start_matches("sqlite://").to_owned();
        ["", "-wal", "-shm"].into_iter().map(move |end| format!("{file}{end}"))
    }
}

/// A registry that accepts connections but never responds neither delays the agent's work nor its end at
/// SIGTERM.
#[tokio::test(flavor = "multi_thread")]
async fn agent_works_while_the_registry_hangs_and_ends_at_sigterm() {
    let hanging = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", hanging.local_addr().unwrap());
    let mut agent = Twin::start(&url, "agent", "run");
    agent.says("working");
    agent.child.signal("TERM");
    let began = Instant::now();
    agent.says("ended: true");
    println!("ended {:.1?} after SIGTERM", began.elapsed());
    assert!(agent.child.wait().unwrap().success());
}

#[tokio::test]
#[ignore = "run as a process by other tests"]
async fn process_of_one_agent() {
    let setting = |name: &str| std::env::var(name).unwrap();
    let name = setting("TWIN_NAME");
    let registration = Registration::new("a", "Agent", format!("http://{name}:8000"))
        .capability(Capability::new(&name))
        .heartbeat_interval(INTERVAL);
    let policy = RetryPolicy::registration().attempts(100).time_limit(Duration::from_secs(60));
    let client = RegistryClient::builder(setting("TWIN_REGISTRY")).retry(policy).build().unwrap();
    let agent = Agent::new(client, registration);
    say("ready");
    if setting("TWIN_MODE") == "run" {
        let work = async {
            say("working");
            std::future::pending::<()>().await;
        };
        say(&format!("ended: {}", agent.run_until(work).await.is_ok()));
        return;
    }
    tokio::spawn(tell_states(agent.clone()));
    agent.start_heartbeat(INTERVAL).unwrap();
    let (sender, mut commands) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    while let Some(command) = commands.recv().await {
        tokio::spawn(obey(agent.clone(), command));
    }
}

async fn obey(agent: Agent, command: String) {
    let outcome = match command.split_once(' ') {
        Some(("update", name)) => agent.update_capabilities(vec![Capability::new(name)]).await.map(|_| "ok"),
        None if command == "register" => agent.register().await.map(|_| "ok"),
        None if command == "shutdown" => {
            agent.shutdown().await;
            Ok("over")
        }
        _ => panic!("what is {command:?}?"),
    };
    let outcome = outcome.unwrap_or_else(|error| if error.is_superseded() { "superseded" } else { "failed" });
    say(&format!("{command}: {outcome}"));
}

async fn tell_states(agent: Agent) {
    let mut states = agent.watch();
    let mut before = "";
    loop {
        let state = states.borrow_and_update().clone();
        let now = match () {
            () if state.is_registered() => "registered",
            () if state.is_degraded() => "degraded",
            () if state.is_superseded() => "superseded",
            () => "other",
        };
        if std::mem::replace(&mut before, now) != now {
            say(now);
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

fn say(line: &str) {
    println!("twin: {line}");
}
