//! Servers in the caller's process and in child processes, and addresses for them.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use registry_server::{Config, Server};

use crate::{NEVER, Process};

/// Starts a server on a database in memory and any free port. Unless `change` says otherwise, no agent misses its deadline.
pub async fn start_server(change: impl FnOnce(&mut Config)) -> Server {
    let mut config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        database_url: "sqlite::memory:".to_owned(),
        heartbeat_timeout: NEVER,
        ..Config::default()
    };
    change(&mut config);
    Server::bind(config).await.unwrap()
}

/// Returns an address that stays free while its server is down: the system never gives such a port to outgoing connections,
/// and this function returns a different one each time.
pub fn lasting_address() -> SocketAddr {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(10_000..20_000)));
    std::iter::repeat_with(|| SocketAddr::from(([127, 0, 0, 1], NEXT.fetch_add(1, Ordering::Relaxed))))
        .find(|address| TcpListener::bind(address).is_ok())
        .unwrap()
}

/// A server in a child process, which runs the same program as the caller. It is killed when this is dropped.
///
/// The program's `main` asks [`listen_address`](Self::listen_address) first whether it is such a child.
#[derive(Debug)]
pub struct ServerProcess {
    _process: Process,
    address: SocketAddr,
}

impl ServerProcess {
    const VARIABLE: &str = "SERVER_PROCESS_LISTEN";

    /// Returns the address on which to serve, if this process was started by [`start`](Self::start).
    pub fn listen_address() -> Option<SocketAddr> {
        std::env::var(Self::VARIABLE).ok().map(|address| address.parse().unwrap())
    }

    /// Starts the program again, and waits until it accepts connections.
    pub fn start() -> Self {
        let address = lasting_address();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(Self::VARIABLE, address.to_string()).stdin(Stdio::null());
        let mut process = Process::spawn(&mut command);
        while TcpStream::connect(address).is_err() {
            assert_eq!(process.try_wait().unwrap(), None, "the server ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { _process: process, address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}
