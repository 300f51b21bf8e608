//! Serves connections, with a connection limit and timeouts for slow clients.
//!
//! Both protect against clients that connect and send nothing, send their request byte by byte, or never read
//! the response (RFC 9110, section 17; CWE-400). The cost of requests is limited in `admission`.

#[cfg(test)]
mod tests;
mod timeouts;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::serve::Listener;
use futures_util::future::OptionFuture;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Slots;
use crate::drain::Drain;
use crate::metrics::Usage;
use timeouts::{TimedIo, Timeouts};

/// Time that requests in flight have to finish after the shutdown was requested.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size of a request head, and maximum number of its header fields.
const MAX_HEADER_BYTES: usize = 32 * 1_024;
const MAX_HEADERS: usize = 64;

/// Maximum size of a connection's read buffer, which must hold a request head, and of its write buffer.
const MAX_BUFFER_BYTES: usize = MAX_HEADER_BYTES;

/// Maximum number of concurrent connections over the limit that get a response. Further ones are closed at
/// once.
pub(crate) const MAX_CONCURRENT_REJECTIONS: usize = 64;

/// Maximum duration of such a connection, so that a silent client does not block the others.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(3);

/// IP address of the peer of the connection, as a request extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddr(pub(crate) IpAddr);

/// Serves the connections that a listener accepts.
pub(crate) struct ConnectionServer {
    pub(crate) router: Router,
    /// Responds to connections over the limit.
    pub(crate) rejecting_router: Router,
    /// One slot per open connection.
    pub(crate) slots: Slots,
    /// Begins at the shutdown, unless it has already begun.
    pub(crate) drain: Arc<Drain>,
    /// Cancelled to stop accepting connections, and to close each connection after its current request.
    pub(crate) shutdown: CancellationToken,
}

impl ConnectionServer {
    /// Serves until the shutdown is requested, then waits up to five seconds for requests in flight.
    pub(crate) async fn serve<L: Listener<Addr = SocketAddr>>(self, mut listener: L) {
        let rejections = Arc::new(Semaphore::new(MAX_CONCURRENT_REJECTIONS));
        let (tasks, abort) = (TaskTracker::new(), CancellationToken::new());
        let mut is_full = false;
        loop {
            let (io, peer) = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shutdown.cancelled() => break,
            };
            let (router, permit, limit) = if let Some(permit) = self.slots.take() {
                // Hysteresis: otherwise, each connection that ends at the limit would cause another log line.
                is_full &= is_nearly_full(self.slots.usage());
                (&self.router, permit, None)
            } else {
                if !std::mem::replace(&mut is_full, true) {
                    tracing::warn!(
                        max_connections = self.slots.usage().max,
                        "connection limit reached, rejecting new connections with 503: see --max-connections"
                    );
                }
                let Ok(permit) = rejections.clone().try_acquire_owned() else { continue };
                (&self.rejecting_router, permit, Some(REJECTION_TIMEOUT))
            };
            let (router, shutdown) = (router.clone(), self.shutdown.clone());
            let served = serve_connection(io, peer, router, limit, shutdown, permit);
            tasks.spawn(abort.clone().run_until_cancelled_owned(served));
        }
        drop(listener);
        self.drain.begin();
        tasks.close();
        if timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
            tracing::warn!("some requests did not finish within the shutdown timeout, dropping them");
            abort.cancel();
        }
    }
}

/// Whether more than three quarters of the slots are taken.
fn is_nearly_full(Usage { used, max }: Usage) -> bool {
    used.saturating_mul(4) > max.saturating_mul(3)
}

/// Serves one connection until it ends, or for a limited time.
///
/// Each connection is a task of this future alone: futures around it would hold more copies of it, at 4 KiB each.
async fn serve_connection<I: AsyncRead + AsyncWrite + Unpin>(
    io: I,
    peer: SocketAddr,
    router: Router,
    limit: Option<Duration>,
    shutdown: CancellationToken,
    _permit: OwnedSemaphorePermit,
) {
    let timeouts = Arc::new(Timeouts::new());
    let service = TowerToHyperService::new(router);
    let state = timeouts.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        state.request_received();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(PeerAddr(peer.ip().to_canonical()));
        let response = service.call(request);
        let state = state.clone();
        async move {
            let response = response.await;
            state.response_started();
            response
        }
    });
    let io = TokioIo::new(TimedIo::new(io, timeouts.clone()));
    let connection = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_BUFFER_BYTES)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut expired = std::pin::pin!(timeouts.expired());
    let mut over_limit = std::pin::pin!(OptionFuture::from(limit.map(sleep)));
    let mut shutdown_requested = std::pin::pin!(shutdown.cancelled());
    let mut is_shutting_down = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "connection failed");
                }
                return;
            }
            reason = &mut expired => {
                tracing::debug!(%peer, reason, "closing the connection");
                return;
            }
            Some(()) = &mut over_limit => return,
            () = &mut shutdown_requested, if !is_shutting_down => {
                is_shutting_down = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
