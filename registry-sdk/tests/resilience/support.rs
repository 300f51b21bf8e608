//! A server that answers as the test says, well or badly, and remembers what arrived.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[cfg(feature = "testing")]
use registry_sdk::contract::Capability;
use registry_sdk::contract::Registration;
use registry_sdk::{Agent, RegistryClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What the server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A whole answer: a status, further header lines, a body.
    Answer(u16, &'static str, &'static str),
    /// The same after a while, with 200 and no headers.
    #[cfg(any(feature = "cache", feature = "testing"))]
    Late(Duration, &'static str),
    /// A whole answer with 200 whose body comes in parts of this size, with a pause before each.
    Parts(&'static str, usize, Duration),
    /// Never answers, and keeps the connection.
    Hang,
    /// Says less than it promised, and closes.
    Truncated,
    /// Closes without a word.
    Close,
    /// These bytes, and nothing more on a connection that stays open.
    #[cfg(all(feature = "cache", feature = "testing"))]
    Stall(&'static str),
    /// These bytes, and closes.
    #[cfg(all(feature = "cache", feature = "testing"))]
    Raw(&'static str),
}

/// One request, as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) what: String,
    pub(crate) body: String,
    pub(crate) at: Instant,
}

pub(crate) struct Server {
    address: SocketAddr,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

pub(crate) const HEARTBEAT: &str = "POST /agents/a/heartbeat";
pub(crate) const REGISTER: &str = "POST /register";

/// The header of an error in the contract's own form.
pub(crate) const PROBLEM: &str = "content-type: application/problem+json\r\n";

pub(crate) const ACK: Reply = Reply::Answer(200, "", r#"{"agent_id":"a","status":"active"}"#);

impl Server {
    /// Answers each request as `script` says, which is told the request line and how many came before.
    pub(crate) async fn start(script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let arrived = Arc::<Mutex<Vec<Arrived>>>::default();
        let connections = Arc::<AtomicUsize>::default();
        let (script, log, accepted) = (Arc::new(script), arrived.clone(), connections.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(let_the_kernel_deliver());
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                serving.spawn(serve(connection, script.clone(), log.clone()));
            }
        });
        Self { address, arrived, connections, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Number of connections that were made so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap().clone()
    }

    /// When requests of a kind arrived.
    pub(crate) fn times(&self, what: &str) -> Vec<Instant> {
        self.arrived().into_iter().filter(|one| one.what.starts_with(what)).map(|one| one.at).collect()
    }
}

async fn serve(
    mut connection: TcpStream,
    script: Arc<impl Fn(&str, usize) -> Reply + Send + Sync + 'static>,
    log: Arc<Mutex<Vec<Arrived>>>,
) {
    while let Some((what, body)) = read(&mut connection).await {
        let before = {
            let mut log = log.lock().unwrap();
            log.push(Arrived { what: what.clone(), body, at: Instant::now() });
            log.len() - 1
        };
        let text = match script(&what, before) {
            Reply::Answer(status, headers, body) => {
                format!("HTTP/1.1 {status} x\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
            }
            #[cfg(any(feature = "cache", feature = "testing"))]
            Reply::Late(pause, body) => {
                tokio::time::sleep(pause).await;
                format!("HTTP/1.1 200 x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            }
            Reply::Parts(body, size, pause) => {
                let head = format!("HTTP/1.1 200 x\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = connection.write_all(head.as_bytes()).await;
                for part in body.as_bytes().chunks(size) {
                    tokio::time::sleep(pause).await;
                    if connection.write_all(part).await.is_err() {
                        return;
                    }
                }
                continue;
            }
            Reply::Hang => {
                std::future::pending::<()>().await;
                return;
            }
            Reply::Truncated => {
                let _ =
                    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"agent_").await;
                return;
            }
            Reply::Close => return,
            #[cfg(all(feature = "cache", feature = "testing"))]
            Reply::Stall(bytes) => {
                let _ = connection.write_all(bytes.as_bytes()).await;
                std::future::pending::<()>().await;
                return;
            }
            #[cfg(all(feature = "cache", feature = "testing"))]
            Reply::Raw(bytes) => {
                let _ = connection.write_all(bytes.as_bytes()).await;
                return;
            }
        };
        if connection.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Reads one request: its method and path, and its body.
async fn read(connection: &mut TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if connection.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    while bytes.len() < head + 4 + length {
        if connection.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let line = String::from_utf8_lossy(&bytes[..head]).lines().next()?.to_owned();
    let what = line.trim_end_matches(" HTTP/1.1").to_owned();
    Some((what, String::from_utf8_lossy(&bytes[head + 4..head + 4 + length]).into_owned()))
}

/// A URL at which nobody listens, for as long as the socket is held.
pub(crate) fn nobody() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    (socket, url)
}

/// Keeps a paused clock from running away. It jumps to the next timer whenever no task can go on, also while bytes are on their
/// way through the kernel; and on a busy machine the kernel may take some milliseconds to deliver them. Only for a minute:
/// tests of a longer time have many chances.
async fn let_the_kernel_deliver() {
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The agent `a` of a server, with a declared interval.
pub(crate) fn agent(server: &Server, interval: Duration) -> Agent {
    agent_of(RegistryClient::new(server.url()).unwrap(), interval)
}

/// The same, with a client of the test's own.
pub(crate) fn agent_of(client: RegistryClient, interval: Duration) -> Agent {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(let_the_kernel_deliver());
    }
    Agent::new(client, Registration::new("a", "Agent", "http://agent:8000").heartbeat_interval(interval))
}

/// Capabilities of which only the names matter.
#[cfg(feature = "testing")]
pub(crate) fn can(names: &[&str]) -> Vec<Capability> {
    names.iter().map(|name| Capability::new(*name)).collect()
}

/// Lets time pass until something holds. On a paused clock that takes no time.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let held = tokio::time::timeout(Duration::from_secs(3_600), waiting).await;
    assert!(held.is_ok(), "never happened: {what}");
}
