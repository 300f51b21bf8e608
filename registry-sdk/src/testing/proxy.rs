//! A TCP proxy that disturbs connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// A fault of a [`FaultProxy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// No fault: all data passes.
    #[default]
    None,
    /// Closes all connections, and every new one at once.
    Refuse,
    /// Forwards requests and withholds the responses: connections stay open, but nothing arrives.
    Hang,
    /// Forwards this many bytes of responses on each connection, then resets it.
    ResetAfter(usize),
    /// Forwards a few bytes at a time, with a pause before each piece.
    Slow(Duration),
}

/// Number of bytes in a piece of [`Fault::Slow`].
const SLOW_CHUNK_BYTES: usize = 16;

/// A TCP proxy in front of any server, whose fault can be changed while it runs.
///
/// It stops when it is dropped, and closes its connections.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use registry_sdk::RegistryClient;
/// use registry_sdk::testing::{Fault, FaultProxy, MockRegistry};
///
/// let registry = MockRegistry::start().await;
/// let proxy = FaultProxy::start(registry.url().trim_start_matches("http://")).await;
/// proxy.set(Fault::ResetAfter(20));
/// let client = RegistryClient::new(format!("http://{}", proxy.address())).unwrap();
/// assert!(client.get_stats().await.unwrap_err().is_retryable());
/// # }
/// ```
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    _tasks: JoinSet<()>,
}

impl FaultProxy {
    /// Starts a proxy in front of a server at `host:port`.
    ///
    /// # Panics
    /// If no port of the loopback address is free, or if called outside of a Tokio runtime.
    #[expect(clippy::expect_used, reason = "a test that cannot have its proxy has failed")]
    pub async fn start(server: impl Into<String>) -> Self {
        let server = server.into();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound listener has an address");
        let fault = watch::Sender::default();
        let watched = fault.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, server.clone(), watched.clone()));
            }
        });
        Self { address, fault, _tasks: tasks }
    }

    /// Returns the address on which the proxy listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the fault, for open connections as well.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

/// Forwards a connection until either side ends it or the proxy closes it.
async fn pass(client: TcpStream, server: String, mut fault: watch::Receiver<Fault>) {
    if *fault.borrow() == Fault::Refuse {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    // The kernel would delay small pieces, and does not know of a paused clock.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let answers = harm(from_server, to_client, fault.clone());
    tokio::select! {
        () = forward(from_client, to_server) => {}
        () = answers => {}
        _ = fault.wait_for(|fault| *fault == Fault::Refuse) => {}
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    // Whatever the result, the connection ends.
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

/// Forwards responses according to the fault.
async fn harm(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut fault: watch::Receiver<Fault>) {
    let mut passed = 0;
    let mut buffer = vec![0; 16 * 1_024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let mut bytes = &buffer[..count];
        while !bytes.is_empty() {
            let now = *fault.borrow();
            let most = match now {
                Fault::None | Fault::Refuse => bytes.len(),
                Fault::Hang => {
                    // Withheld data arrives when the fault is over.
                    if fault.wait_for(|fault| *fault != Fault::Hang).await.is_err() {
                        return;
                    }
                    continue;
                }
                Fault::ResetAfter(limit) if passed >= limit => {
                    let _ = to.as_ref().set_zero_linger();
                    return;
                }
                Fault::ResetAfter(limit) => limit - passed,
                Fault::Slow(pause) => {
                    sleep(pause).await;
                    SLOW_CHUNK_BYTES
                }
            };
            let (piece, rest) = bytes.split_at(most.min(bytes.len()));
            if to.write_all(piece).await.is_err() {
                return;
            }
            (passed, bytes) = (passed + piece.len(), rest);
        }
    }
}
