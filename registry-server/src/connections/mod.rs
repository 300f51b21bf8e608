//! Serving connections: how many there may be at once, and how long a client may keep one waiting.
//!
//! The bounds are those that a server on the open net needs against clients that connect and say nothing, say it byte by
//! byte, or never read what they asked for (RFC 9110, section 17; CWE-400). What a request may cost is bounded elsewhere
//! (`admission`).

mod pace;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use pace::{Pace, Paced};

/// How long requests in flight may take to finish once the server has been told to stop.
const GRACE: Duration = Duration::from_secs(10);

/// How many bytes of a request's head there may be, and how many header fields.
const HEAD_BYTES: usize = 32 * 1_024;
const HEAD_FIELDS: usize = 64;

/// How many bytes of a connection may wait to be sent, beside what its answer still has to give.
const WAITING_BYTES: usize = 64 * 1_024;

/// How many connections too many are told so at once. Further ones are closed without a word.
const REFUSED_AT_ONCE: usize = 64;

/// How long it may take to tell them.
const REFUSAL: Duration = Duration::from_secs(2);

/// What they are told.
const REFUSED: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/problem+json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 144\r\n\r\n\
    {\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\
    \"detail\":\"the server has as many connections as it may; try again\",\"errors\":[]}";

/// The address of who sent a request, in its extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// What serves the connections that a listener gives.
pub(crate) struct Connections {
    pub(crate) router: Router,
    /// Whether requests have their [`Peer`] with them.
    pub(crate) peers: bool,
    /// How many there may be at once.
    pub(crate) most: usize,
    /// No further ones are taken, and those that are there end with their present request.
    pub(crate) stop: CancellationToken,
}

impl Connections {
    /// Serves until it is told to stop, and for up to ten seconds the requests that are in flight then.
    pub(crate) async fn serve<L: Listener<Addr = SocketAddr>>(self, mut listener: L) {
        let places = Arc::new(Semaphore::new(self.most));
        let refusals = Arc::new(Semaphore::new(REFUSED_AT_ONCE));
        let open = TaskTracker::new();
        let mut full = false;
        loop {
            let (io, peer) = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => break,
            };
            if let Ok(place) = places.clone().try_acquire_owned() {
                full = false;
                open.spawn(converse(io, peer, self.peers, self.router.clone(), self.stop.clone(), place));
            } else {
                if !std::mem::replace(&mut full, true) {
                    tracing::warn!(connections = self.most, "no room for more: see --max-connections");
                }
                if let Ok(turn) = refusals.clone().try_acquire_owned() {
                    open.spawn(refuse(io, turn));
                }
            }
        }
        drop(listener);
        open.close();
        if timeout(GRACE, open.wait()).await.is_err() {
            tracing::warn!("some requests did not finish in time");
        }
    }
}

/// Serves one connection to its end.
async fn converse<I: AsyncRead + AsyncWrite + Unpin>(
    io: I,
    peer: SocketAddr,
    tells_peer: bool,
    router: Router,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    let pace = Arc::new(Pace::new());
    let service = TowerToHyperService::new(router);
    let answering = pace.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        answering.begins_to_answer();
        let mut request = request.map(Body::new);
        if tells_peer {
            request.extensions_mut().insert(Peer(peer.ip().to_canonical()));
        }
        let answer = service.call(request);
        let answering = answering.clone();
        async move {
            let answer = answer.await;
            answering.answers();
            answer
        }
    });
    let io = TokioIo::new(Paced::new(io, pace.clone()));
    let connection = http1::Builder::new()
        .max_headers(HEAD_FIELDS)
        .max_header_size(HEAD_BYTES)
        .max_buf_size(WAITING_BYTES)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut overdue = std::pin::pin!(pace.overdue());
    let mut stopping = std::pin::pin!(stop.cancelled());
    let mut is_stopping = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "a connection ended badly");
                }
                return;
            }
            why = &mut overdue => {
                tracing::debug!(%peer, why, "closing a connection");
                return;
            }
            () = &mut stopping, if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Tells a client that there is no room. Its request is read as far as it has come, or the answer would be lost with it.
async fn refuse<I: AsyncRead + AsyncWrite + Unpin>(mut io: I, _turn: OwnedSemaphorePermit) {
    let telling = async {
        let mut request = [0; 4_096];
        if io.read(&mut request).await? == 0 {
            return Ok(());
        }
        io.write_all(REFUSED).await?;
        io.shutdown().await?;
        while io.read(&mut request).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Who does not want to hear it is closed all the same.
    let _ = timeout(REFUSAL, telling).await;
}
