//! Load: plain HTTP/1.1 over a socket, which uses as little CPU time as possible, and its results.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use test_support::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A connection for successive requests.
pub(crate) struct Connection {
    address: String,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn to(address: &str) -> Self {
        Self { address: address.to_owned(), stream: None, buffer: Vec::new() }
    }

    /// Sends a request, reads the whole response, and returns its status.
    pub(crate) async fn send(&mut self, method: &str, target: &str, body: &str) -> io::Result<u16> {
        let answer = self.exchange(method, target, body).await;
        if answer.is_err() {
            self.stream = None;
        }
        answer
    }

    async fn exchange(&mut self, method: &str, target: &str, body: &str) -> io::Result<u16> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(&self.address).await?;
                stream.set_nodelay(true)?;
                none.insert(stream)
            }
        };
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: registry\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        self.buffer.clear();
        let (body, head) = loop {
            if let Some(head) = self.buffer.windows(4).position(|end| end == b"\r\n\r\n") {
                let text = std::str::from_utf8(&self.buffer[..head]).map_err(io::Error::other)?;
                break (head + 4, Head::parse(text)?);
            }
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        while self.buffer.len() < body + head.content_length {
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if head.closes {
            self.stream = None;
        }
        Ok(head.status)
    }
}

/// The head of a response.
struct Head {
    status: u16,
    content_length: usize,
    /// Whether the server closes the connection after the response.
    closes: bool,
}

impl Head {
    fn parse(text: &str) -> io::Result<Self> {
        let text = text.to_ascii_lowercase();
        let field = |name: &str| {
            text.lines().filter_map(|line| line.split_once(':')).find(|(field, _)| *field == name)
        };
        let content_length = field("content-length").map_or(Ok(0), |(_, length)| length.trim().parse());
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(Self {
            status: status.ok_or(io::ErrorKind::InvalidData)?,
            content_length: content_length.map_err(io::Error::other)?,
            closes: field("connection").is_some_and(|(_, value)| value.trim() == "close"),
        })
    }
}

/// Durations of successful requests.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Mutex<Vec<Duration>>);

impl Latencies {
    pub(crate) fn add(&self, took: Duration) {
        self.0.lock().push(took);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Returns a quantile, in thousandths.
    pub(crate) fn quantile(&self, thousandths: usize) -> Duration {
        let mut all = self.0.lock();
        all.sort_unstable();
        let place = (all.len() * thousandths / 1_000).min(all.len().saturating_sub(1));
        all.get(place).copied().unwrap_or_default()
    }
}

/// Requests of one kind over many connections, until dropped.
pub(crate) struct Load {
    pub(crate) good: Arc<Latencies>,
    pub(crate) refused: Arc<AtomicU64>,
    pub(crate) failed: Arc<AtomicU64>,
    began: Instant,
    _senders: JoinSet<()>,
}

impl Load {
    /// Sends `a_second` requests per second over a number of connections, or as many as they can carry.
    ///
    /// A connection that waits for its response sends nothing. `request` returns the method, target and body
    /// for a number.
    pub(crate) fn start(
        address: &str,
        connections: u32,
        a_second: f64,
        request: impl Fn(u64) -> (&'static str, String, String) + Send + Sync + 'static,
    ) -> Self {
        let (request, number) = (Arc::new(request), Arc::new(AtomicU64::new(0)));
        let (good, refused, failed) = (Arc::<Latencies>::default(), Arc::default(), Arc::default());
        let every = Duration::from_secs_f64(f64::from(connections) / a_second);
        let mut senders = JoinSet::new();
        for _ in 0..connections {
            let (request, number, address) = (request.clone(), number.clone(), address.to_owned());
            let (good, refused, failed): (Arc<Latencies>, Arc<AtomicU64>, Arc<AtomicU64>) =
                (good.clone(), Arc::clone(&refused), Arc::clone(&failed));
            senders.spawn(async move {
                let mut connection = Connection::to(&address);
                let mut turns = tokio::time::interval(every.max(Duration::from_micros(1)));
                // Missed turns are not caught up.
                turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                tokio::time::sleep(every.mul_f64(fastrand::f64())).await;
                loop {
                    if every > Duration::from_millis(1) {
                        turns.tick().await;
                    }
                    let (method, target, body) = request(number.fetch_add(1, Ordering::Relaxed));
                    let began = Instant::now();
                    match connection.send(method, &target, &body).await {
                        Ok(200..300) => good.add(began.elapsed()),
                        Ok(429 | 503) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                        _ => drop(failed.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            });
        }
        Self { good, refused, failed, began: Instant::now(), _senders: senders }
    }

    /// Returns the rate of successful requests if the connections send as many as they can. It is never 0: a busy machine may need more time
    /// for the first one.
    pub(crate) async fn most(
        address: &str,
        connections: u32,
        time: Duration,
        request: impl Fn(u64) -> (&'static str, String, String) + Send + Sync + 'static,
    ) -> f64 {
        let load = Self::start(address, connections, 1e9, request);
        tokio::time::sleep(time).await;
        eventually("a request succeeds", async || load.good.count() > 0).await;
        load.rate()
    }

    /// Returns the number of successful requests per second.
    pub(crate) fn rate(&self) -> f64 {
        self.good.count() as f64 / self.began.elapsed().as_secs_f64()
    }
}
