//! A load balancer that uses nothing of HTTP but `GET /readyz`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{Connection, eventually};

/// Forwards each connection to the next server that is ready.
pub(super) struct Balancer {
    pub(super) address: String,
    backends: Arc<[Backend]>,
    _tasks: JoinSet<()>,
}

struct Backend {
    address: String,
    is_ready: AtomicBool,
    connections: AtomicUsize,
}

impl Balancer {
    pub(super) async fn start(addresses: &[String], check_interval: Duration) -> Self {
        let backend = |address: &String| Backend {
            address: address.clone(),
            is_ready: AtomicBool::new(true),
            connections: AtomicUsize::default(),
        };
        let backends: Arc<[Backend]> = addresses.iter().map(backend).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut tasks = JoinSet::new();
        for index in 0..backends.len() {
            let backends = backends.clone();
            tasks.spawn(async move {
                loop {
                    // On a new connection each time, as load balancers do.
                    let is_ready = is_ready(&backends[index].address).await;
                    backends[index].is_ready.store(is_ready, Ordering::SeqCst);
                    tokio::time::sleep(check_interval).await;
                }
            });
        }
        tasks.spawn(accept(listener, backends.clone()));
        Self { address, backends, _tasks: tasks }
    }

    /// Waits until the balancer knows whether a server is ready and, if not, until the server has no more
    /// connections.
    pub(super) async fn noticed(&self, index: usize, is_ready: bool) {
        let backend = &self.backends[index];
        eventually("the load balancer has noticed", async || {
            backend.is_ready.load(Ordering::SeqCst) == is_ready
                && (is_ready || backend.connections.load(Ordering::SeqCst) == 0)
        })
        .await;
    }
}

pub(super) async fn is_ready(address: &str) -> bool {
    Connection::to(address).send("GET", "/readyz", "").await.is_ok_and(|status| status == 200)
}

async fn accept(listener: TcpListener, backends: Arc<[Backend]>) {
    let mut connections = JoinSet::new();
    for turn in 0_usize.. {
        let (mut client, _) = listener.accept().await.unwrap();
        let backends = backends.clone();
        let turns = (0..backends.len()).map(|number| (turn + number) % backends.len());
        let Some(index) = turns.into_iter().find(|index| backends[*index].is_ready.load(Ordering::SeqCst))
        else {
            continue;
        };
        connections.spawn(async move {
            let backend = &backends[index];
            backend.connections.fetch_add(1, Ordering::SeqCst);
            // If the server cannot be reached, its client loses the connection.
            if let Ok(mut server) = TcpStream::connect(&backend.address).await {
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
            backend.connections.fetch_sub(1, Ordering::SeqCst);
        });
        while connections.try_join_next().is_some() {}
    }
}
