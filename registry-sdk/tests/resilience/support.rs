//! A scripted server that records its requests.

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

/// The server's reaction to a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A complete response: status, further headers, body.
    Answer(u16, &'static str, &'static str),
    /// The same after a delay, with 200 and no headers.
    #[cfg(any(feature = "cache", feature = "testing"))]
    Late(Duration, &'static str),
    /// A complete response with 200 whose body arrives in parts of this size, with a pause before each.
    Parts(&'static str, usize, Duration),
    /// The same with further headers.
    #[cfg(feature = "testing")]
    PartsWith(&'static str, &'static str, usize, Duration),
    /// Never responds, and keeps the connection.
    Hang,
    /// Sends less than it announced, and closes the connection.
    Truncated,
    /// Closes the connection without a response.
    Close,
    /// A status and an endless body: parts of this size, with a pause before each.
    #[cfg(feature = "testing")]
    Endless(u16, usize, Duration),
    /// These bytes, and nothing more on a connection that stays open.
    #[cfg(feature = "testing")]
    Stall(&'static str),
    /// These bytes, then closes the connection.
    #[cfg(feature = "testing")]
    Raw(&'static str),
    /// An event stream of these bytes, in parts of this size with a pause before each, on a connection that stays open.
    #[cfg(feature = "testing")]
    Slow(&'static str, usize, Duration),
}

#[cfg(feature = "testing")]
impl Reply {
    /// A response with headers that are known only at run time. Their text is never freed.
    pub(crate) fn with(status: u16, headers: &[(&str, &str)], body: &'static str) -> Self {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        Self::Answer(status, lines.leak(), body)
    }
}

/// Maximum number of bytes of an endless body: a reader without a limit fails its test, but does not use up the machine's
/// memory.
#[cfg(feature = "testing")]
pub(crate) const ENDLESS: usize = 64 * 1024 * 1024;

/// A recorded request.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) what: String,
    #[cfg(feature = "testing")]
    head: String,
    pub(crate) body: String,
    pub(crate) at: Instant,
}

#[cfg(feature = "testing")]
impl Arrived {
    /// Returns the value of a header by its lower-case name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.find_map(|(field, value)| field.eq_ignore_ascii_case(name).then(|| value.trim()))
    }
}

pub(crate) struct Server {
    address: SocketAddr,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

/// The records of a server.
#[derive(Default)]
struct Seen {
    arrived: Mutex<Vec<Arrived>>,
    connections: AtomicUsize,
    /// Number of bytes that were sent of endless bodies.
    #[cfg(feature = "testing")]
    endless_bytes: AtomicUsize,
}

pub(crate) const HEARTBEAT: &str = "POST /agents/a/heartbeat";
pub(crate) const REGISTER: &str = "POST /register";

/// The header of an error in the contract's own form.
pub(crate) const PROBLEM: &str = "content-type: application/problem+json\r\n";

pub(crate) const ACK: Reply = Reply::Answer(200, "", r#"{"agent_id":"a","status":"active"}"#);

impl Server {
    /// Responds to each request as `script` says, which gets the request line and the number of earlier requests.
    pub(crate) async fn start(script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Seen>::default();
        let (script, shared) = (Arc::new(script), seen.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(let_the_kernel_deliver());
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                // Otherwise small parts wait in the kernel, whose clock is not paused.
                connection.set_nodelay(true).unwrap();
                serving.spawn(serve(connection, script.clone(), shared.clone()));
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Returns the number of bytes that were sent of endless bodies.
    #[cfg(feature = "testing")]
    pub(crate) fn endless_bytes(&self) -> usize {
        self.seen.endless_bytes.load(Ordering::SeqCst)
    }

    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        self.seen.arrived.lock().unwrap().clone()
    }

    /// Returns when requests of a kind arrived.
    pub(crate) fn times(&self, what: &str) -> Vec<Instant> {
        self.arrived().into_iter().filter(|one| one.what.starts_with(what)).map(|one| one.at).collect()
    }
}

async fn serve(
    mut connection: TcpStream,
    script: Arc<impl Fn(&str, usize) -> Reply + Send + Sync + 'static>,
    seen: Arc<Seen>,
) {
    while let Some(request) = read(&mut connection).await {
        let what = request.what.clone();
        let before = {
            let mut log = seen.arrived.lock().unwrap();
            log.push(request);
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
                if send_parts(&mut connection, "", body, size, pause).await.is_err() {
                    return;
                }
                continue;
            }
            #[cfg(feature = "testing")]
            Reply::PartsWith(headers, body, size, pause) => {
                if send_parts(&mut connection, headers, body, size, pause).await.is_err() {
                    return;
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
            #[cfg(feature = "testing")]
            Reply::Endless(status, size, pause) => {
                send_endlessly(&mut connection, status, size, pause, &seen.endless_bytes).await;
                return;
            }
            #[cfg(feature = "testing")]
            Reply::Stall(bytes) => {
                let _ = connection.write_all(bytes.as_bytes()).await;
                std::future::pending::<()>().await;
                return;
            }
            #[cfg(feature = "testing")]
            Reply::Slow(bytes, size, pause) => {
                let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
                let mut written = connection.write_all(head).await;
                for part in bytes.as_bytes().chunks(size) {
                    tokio::time::sleep(pause).await;
                    if written.is_ok() {
                        written = connection.write_all(part).await;
                    }
                }
                std::future::pending::<()>().await;
                return;
            }
            #[cfg(feature = "testing")]
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

async fn send_parts(
    connection: &mut TcpStream,
    headers: &str,
    body: &str,
    size: usize,
    pause: Duration,
) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 x\r\n{headers}content-length: {}\r\n\r\n", body.len());
    connection.write_all(head.as_bytes()).await?;
    for part in body.as_bytes().chunks(size) {
        tokio::time::sleep(pause).await;
        connection.write_all(part).await?;
    }
    Ok(())
}

/// Sends a body of white space, which may begin any JSON, until the reader closes the connection.
#[cfg(feature = "testing")]
async fn send_endlessly(
    connection: &mut TcpStream,
    status: u16,
    size: usize,
    pause: Duration,
    sent: &AtomicUsize,
) {
    let head = format!("HTTP/1.1 {status} x\r\ntransfer-encoding: chunked\r\n\r\n");
    let part = format!("{size:x}\r\n{}\r\n", " ".repeat(size));
    let mut written = connection.write_all(head.as_bytes()).await;
    while written.is_ok() && sent.load(Ordering::SeqCst) < ENDLESS {
        tokio::time::sleep(pause).await;
        written = connection.write_all(part.as_bytes()).await;
        sent.fetch_add(size, Ordering::SeqCst);
    }
    if written.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// Reads a request.
async fn read(connection: &mut TcpStream) -> Option<Arrived> {
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
    let body = String::from_utf8_lossy(&bytes[head + 4..head + 4 + length]).into_owned();
    let head = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let what = head.lines().next()?.trim_end_matches(" HTTP/1.1").to_owned();
    Some(Arrived {
        what,
        #[cfg(feature = "testing")]
        head,
        body,
        at: Instant::now(),
    })
}

/// Returns a URL without a listener, for as long as the socket is held.
pub(crate) fn without_listener() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    (socket, url)
}

/// Keeps a paused clock from running away. The clock jumps to the next timer whenever no task can run, even while bytes are
/// passing through the kernel, which may take some milliseconds on a busy machine. Limited to a minute: longer tests have many
/// chances.
async fn let_the_kernel_deliver() {
    let_the_kernel_deliver_for(60).await;
}

/// The same for this many seconds of the paused clock.
pub(crate) async fn let_the_kernel_deliver_for(seconds: usize) {
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The agent `a` of a server, with a declared interval.
pub(crate) fn agent(server: &Server, interval: Duration) -> Agent {
    agent_of(RegistryClient::new(server.url()).unwrap(), interval)
}

/// The same with a custom client.
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

/// Waits until a condition holds. On a paused clock that takes no time.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let held = tokio::time::timeout(Duration::from_secs(3_600), waiting).await;
    assert!(held.is_ok(), "never happened: {what}");
}
