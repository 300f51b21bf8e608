//! A proxy for PostgreSQL that understands the client's messages. It can silence connections and inject
//! faults at one statement.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Forwards connections to a PostgreSQL server. Dropping it closes them all.
pub(crate) struct DatabaseProxy {
    url: String,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

/// Effect of a trap on the connection whose statement triggers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The statement does not reach the database, and the connection is closed.
    CutBefore,
    /// The statement does not reach the database, and nothing passes any more.
    SilentBefore,
    /// The database executes the statement, but the response is lost, and the connection is closed.
    CutAfter,
    /// The database executes the statement, but the response is lost, and nothing passes any more.
    SilentAfter,
}

/// Waits for a statement on any connection, and fires once.
struct Trap {
    /// Takes the transaction's statements so far, including the one about to be executed.
    matches: fn(&[String]) -> bool,
    effect: Effect,
}

#[derive(Default)]
struct Shared {
    silence: watch::Sender<Silence>,
    /// Number of connections so far, which numbers them.
    accepted: AtomicU64,
    trap: Mutex<Option<Trap>>,
    fired: watch::Sender<u64>,
    /// Open connections that have sent `LISTEN`.
    listening: Mutex<HashSet<u64>>,
}

/// The connections on which nothing passes in either direction. They stay open.
#[derive(Default)]
struct Silence {
    /// Silences all connections with smaller numbers.
    below: u64,
    others: HashSet<u64>,
}

impl Silence {
    fn covers(&self, connection: u64) -> bool {
        connection < self.below || self.others.contains(&connection)
    }
}

impl DatabaseProxy {
    /// Starts a proxy for the database at a URL.
    pub(crate) async fn start(database_url: &str) -> Self {
        let mut url = url::Url::parse(database_url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5_432));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        let shared = Arc::<Shared>::default();
        let (mut tasks, accepting) = (JoinSet::new(), shared.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let number = accepting.accepted.fetch_add(1, Ordering::Relaxed);
                connections.spawn(pass(client, server.clone(), number, accepting.clone()));
            }
        });
        Self { url: url.into(), shared, _tasks: tasks }
    }

    /// Returns the URL of the database through this proxy.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Silences all present connections, but not new ones.
    pub(crate) fn silence_present(&self) {
        let present = self.shared.accepted.load(Ordering::Relaxed);
        self.shared.silence.send_modify(|silence| silence.below = present);
    }

    /// Silences all present and new connections.
    pub(crate) fn silence_all(&self) {
        self.shared.silence.send_modify(|silence| silence.below = u64::MAX);
    }

    /// Silences the connections that listen for notifications.
    pub(crate) fn silence_listening(&self) {
        let listening = self.shared.listening.lock().clone();
        self.shared.silence.send_modify(|silence| silence.others.extend(listening));
    }

    /// Ends all silences, and delivers held data.
    pub(crate) fn resume(&self) {
        self.shared.silence.send_replace(Silence::default());
    }

    /// Whether a connection listens for notifications and is not silenced.
    pub(crate) fn is_listening(&self) -> bool {
        let silence = self.shared.silence.borrow();
        self.shared.listening.lock().iter().any(|number| !silence.covers(*number))
    }

    /// Sets a trap for the `COMMIT` of the next transaction that writes events.
    pub(crate) fn trap_commit(&self, effect: Effect) {
        let matches = |transaction: &[String]| {
            let is_change =
                |sql: &String| sql.contains("INSERT INTO agent_registry_event") && !sql.starts_with("BEGIN");
            transaction.last().is_some_and(|sql| is_commit(sql)) && transaction.iter().any(is_change)
        };
        *self.shared.trap.lock() = Some(Trap { matches, effect });
    }

    /// Sets a trap for the statement that locks the row needed by every change.
    pub(crate) fn trap_state_lock(&self, effect: Effect) {
        let matches = |transaction: &[String]| {
            let locks = |sql: &String| sql.contains("agent_registry_state") && sql.contains("FOR UPDATE");
            transaction.last().is_some_and(locks)
        };
        *self.shared.trap.lock() = Some(Trap { matches, effect });
    }

    /// Sets a trap for a migration.
    pub(crate) fn trap_migration(&self, effect: Effect) {
        let matches =
            |transaction: &[String]| transaction.last().is_some_and(|sql| sql.contains("ALTER TABLE"));
        *self.shared.trap.lock() = Some(Trap { matches, effect });
    }

    /// Sets a trap for the statement with which a server begins to load all agents.
    pub(crate) fn trap_load(&self, effect: Effect) {
        let matches =
            |transaction: &[String]| transaction.last().is_some_and(|sql| sql.contains("enable_seqscan"));
        *self.shared.trap.lock() = Some(Trap { matches, effect });
    }

    /// Returns the number of traps that have fired.
    pub(crate) fn fired(&self) -> u64 {
        *self.shared.fired.borrow()
    }
}

fn is_commit(sql: &str) -> bool {
    let word = sql.trim().trim_end_matches(';');
    word.eq_ignore_ascii_case("COMMIT") || word.eq_ignore_ascii_case("END")
}

/// One connection.
struct Pass {
    number: u64,
    shared: Arc<Shared>,
    /// Whether to drop the next response and close the connection.
    cut_at_answer: AtomicBool,
}

/// Forwards a connection until either side or a trap ends it.
async fn pass(client: TcpStream, server: String, number: u64, shared: Arc<Shared>) {
    let pass = Pass { number, shared, cut_at_answer: AtomicBool::new(false) };
    pass.open().await;
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pass.requests(from_client, to_server) => {}
        () = pass.answers(from_server, to_client) => {}
    }
    pass.shared.listening.lock().remove(&number);
}

impl Pass {
    /// Waits until the connection is not silenced.
    async fn open(&self) {
        let mut silence = self.shared.silence.subscribe();
        // The sender lives as long as `self`.
        let _ = silence.wait_for(|silence| !silence.covers(self.number)).await;
    }

    async fn answers(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 16 * 1_024];
        loop {
            let read = from.read(&mut buffer).await;
            // A silence also hides the end of the connection from the other side.
            self.open().await;
            let Ok(count @ 1..) = read else { return };
            if self.cut_at_answer.load(Ordering::Relaxed) || to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }

    async fn requests(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut wire = Wire::default();
        // The effect of a trap that fires once the statement has passed completely.
        let mut due = None;
        loop {
            let read = from.read_buf(&mut wire.buffer).await;
            self.open().await;
            let Ok(1..) = read else { return };
            let mut passing = Vec::new();
            while let Some(message) = wire.next_message() {
                if message.executes {
                    self.note_listening(wire.transaction.last());
                    match self.trapped(&wire.transaction) {
                        Some(Effect::CutBefore) => return self.count_fired(),
                        Some(Effect::SilentBefore) => {
                            self.silence();
                            self.count_fired();
                            return self.open().await;
                        }
                        after => due = due.or(after),
                    }
                }
                passing.extend_from_slice(&message.bytes);
                if message.ends_statement
                    && let Some(effect) = due.take()
                {
                    match effect {
                        Effect::CutAfter => self.cut_at_answer.store(true, Ordering::Relaxed),
                        _ => self.silence(),
                    }
                    if to.write_all(&std::mem::take(&mut passing)).await.is_err() {
                        return;
                    }
                    self.count_fired();
                    self.open().await;
                }
            }
            if to.write_all(&passing).await.is_err() {
                return;
            }
        }
    }

    fn trapped(&self, transaction: &[String]) -> Option<Effect> {
        let mut trap = self.shared.trap.lock();
        trap.take_if(|trap| (trap.matches)(transaction)).map(|trap| trap.effect)
    }

    fn silence(&self) {
        self.shared.silence.send_modify(|silence| silence.others.extend([self.number]));
    }

    fn count_fired(&self) {
        self.shared.fired.send_modify(|fired| *fired += 1);
    }

    fn note_listening(&self, sql: Option<&String>) {
        if sql.is_some_and(|sql| sql.starts_with("LISTEN")) {
            self.shared.listening.lock().insert(self.number);
        }
    }
}

/// Parser for the messages of a client.
#[derive(Default)]
struct Wire {
    buffer: Vec<u8>,
    /// After the startup message, each message begins with its type.
    has_started: bool,
    /// Texts of prepared statements, by name.
    prepared: HashMap<Vec<u8>, String>,
    /// Statements executed since the last `BEGIN` or the end of the transaction.
    transaction: Vec<String>,
}

/// A complete message.
struct Message {
    bytes: Vec<u8>,
    /// Whether it executes a statement, which is then the last of [`Wire::transaction`].
    executes: bool,
    /// Whether the database executes the statements so far without waiting for more messages.
    ends_statement: bool,
}

/// Codes of encryption requests, which precede the startup message.
const ENCRYPTION_REQUESTS: [i32; 2] = [80_877_103, 80_877_104];

impl Wire {
    fn next_message(&mut self) -> Option<Message> {
        let head = usize::from(self.has_started);
        let length = self.buffer.get(head..head + 4)?;
        let length = usize::try_from(i32::from_be_bytes(length.try_into().ok()?)).ok()?;
        if self.buffer.len() < head + length {
            return None;
        }
        let bytes: Vec<u8> = self.buffer.drain(..head + length).collect();
        if !self.has_started {
            let code = bytes.get(4..8).and_then(|code| code.try_into().ok()).map(i32::from_be_bytes);
            self.has_started = code.is_none_or(|code| !ENCRYPTION_REQUESTS.contains(&code));
            return Some(Message { bytes, executes: false, ends_statement: false });
        }
        let mut texts = bytes[5..].split(|byte| *byte == 0);
        let (first, second) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
        let statement = match bytes[0] {
            b'Q' => Some(String::from_utf8_lossy(first).into_owned()),
            b'B' => self.prepared.get(second).cloned(),
            b'P' => {
                self.prepared.insert(first.to_vec(), String::from_utf8_lossy(second).into_owned());
                None
            }
            _ => None,
        };
        let (executes, ends_statement) = (statement.is_some(), matches!(bytes[0], b'Q' | b'S'));
        if let Some(sql) = statement {
            let is_over = |sql: &String| is_commit(sql) || sql.starts_with("ROLLBACK");
            if sql.starts_with("BEGIN") || self.transaction.last().is_some_and(is_over) {
                self.transaction.clear();
            }
            self.transaction.push(sql);
        }
        Some(Message { bytes, executes, ends_statement })
    }
}
