//! Slow clients: more than the server accepts that send nothing, send a request head byte by byte, or send no
//! body; and many that do not read their responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use registry_sdk::ListQuery;
use registry_sdk::contract::{Capability, Registration};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::support::{LONG, Load, Server, Store, agent, eventually, is_long, length};

const AGENTS: u64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_do_not_delay_heartbeats() {
    let most: usize = length(16_000, 200);
    let store = Store::sqlite();
    let server = Server::running(&store.url, &["--max-connections", &most.to_string()]).await;
    let client = server.patient_client();
    for number in 0..AGENTS {
        client.register(&agent(&format!("agent-{number}"), "work")).await.unwrap();
    }
    let beat = |number: u64| ("POST", format!("/agents/agent-{}/heartbeat", number % AGENTS), String::new());
    let beats = Load::start(&server.address(), 8, 200.0, beat);
    eventually("the agents have their connections", async || beats.good.count() > 100).await;
    let (memory, files) = (server.memory(), server.open_files());

    let (refused, closed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let mut dawdling = JoinSet::new();
    let asked = most + most / 10;
    for number in 0..asked {
        let (address, refused, closed) = (server.address(), refused.clone(), closed.clone());
        dawdling.spawn(async move {
            // Empty if the connection was closed while the client was writing.
            let said = dawdle(&address, number).await.unwrap_or_default();
            let count = if said.starts_with("HTTP/1.1 503") { &refused } else { &closed };
            count.fetch_add(1, Ordering::Relaxed);
        });
        if number % 500 == 499 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let mut peak = (0, 0);
    let began = Instant::now();
    while closed.load(Ordering::Relaxed) + refused.load(Ordering::Relaxed) < asked {
        peak = (server.memory().max(peak.0), server.open_files().max(peak.1));
        assert!(began.elapsed() < LONG, "they are not closed: {closed:?}, {refused:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let over = began.elapsed();
    eventually("the files are closed", async || server.open_files() <= files + 5).await;
    let (p99, failed) = (beats.good.quantile(990), beats.failed.load(Ordering::Relaxed));
    println!(
        "{asked} connections of dawdlers, {most} allowed: {refused:?} were told there is no room, all closed after {over:.1?}; \
         open files {files} before, at most {}; memory {memory} KiB before, at most {}; heartbeats meanwhile p99 {p99:?}, {failed} failed",
        peak.1, peak.0
    );
    assert!(peak.1 <= files + most + 70, "{peak:?}");
    // If none was rejected, the last connection arrived after the first was closed, and each is given 10 s.
    let has_refused = refused.load(Ordering::Relaxed) > 0 || over > Duration::from_secs(19);
    assert!(has_refused && failed == 0, "{refused:?} refused, {failed} failed");
    assert!(
        !is_long() || over < Duration::from_secs(45) && p99 < Duration::from_secs(1),
        "{over:?}, {p99:?}"
    );
}

/// Returns the server's response to a slow client.
async fn dawdle(address: &str, number: usize) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    let (begin, pause): (&[u8], _) = match number % 3 {
        0 => (b"", Duration::from_secs(3_600)),
        1 => (b"GET /stats HTTP/1.1\r\nx: ", Duration::from_secs(1)),
        // Short enough not to count for the limit on bodies, so that only that on connections applies.
        _ => (
            b"POST /register HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 4000\r\n\r\n",
            Duration::from_secs(1),
        ),
    };
    connection.write_all(begin).await?;
    let (mut reading, mut writing) = connection.split();
    let drip = async {
        loop {
            tokio::time::sleep(pause).await;
            if writing.write_all(b"x").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut said = Vec::new();
    tokio::select! {
        read = reading.read_to_end(&mut said) => { read?; }
        () = drip => {}
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Many clients request the longest possible responses, and read them slowly or not at all, without affecting
/// others.
#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_do_not_affect_other_clients() {
    let readers: usize = length(4_000, 400);
    let store = Store::sqlite();
    let server = Server::running(&store.url, &[]).await;
    let client = server.patient_client();
    // Together longer than what the operating system buffers per connection.
    for number in 0..600 {
        let mut work = Capability::new("work").description("€".repeat(1_024));
        work.tags = (0..32).map(|tag| format!("{tag:02}{}", "€".repeat(62))).collect();
        let id = format!("agent-{number}");
        client
            .register(&Registration::new(&id, &id, "http://agents.example:8000").capability(work))
            .await
            .unwrap();
    }
    let beat = |number: u64| ("POST", format!("/agents/agent-{}/heartbeat", number % 600), String::new());
    let beats = Load::start(&server.address(), 8, 200.0, beat);
    eventually("the agents have their connections", async || beats.good.count() > 100).await;
    let memory = server.memory();

    let seen = Arc::<Seen>::default();
    let mut reading = JoinSet::new();
    let began = Instant::now();
    for number in 0..readers {
        let (address, tally) = (server.address(), seen.clone());
        reading.spawn(async move {
            // Fails when the server closes the connection.
            let _ = read_slowly(&address, number, &tally).await;
        });
        // Wait, since too many responses at once would be rejected, however fast the clients read them.
        if number % 100 == 99 {
            let has_begun = async || seen.answered() + seen.refused() > number;
            eventually("the answers have begun", has_begun).await;
        }
    }
    println!(
        "{readers} slow readers after {:.1?}, {} of them refused; memory {memory} KiB before, {} now",
        began.elapsed(),
        seen.refused(),
        server.memory()
    );
    assert_eq!(seen.refused(), 0, "slow readers that were refused");

    let others = server.client();
    let mut peak = 0;
    for _ in 0..length(400, 20) {
        peak = server.memory().max(peak);
        others.list_agents(ListQuery::all().limit(1)).await.unwrap();
        others.search_capabilities("work").await.unwrap();
        others.get_stats().await.unwrap();
        tokio::time::sleep(Duration::from_millis(length(100, 0))).await;
    }
    let (p99, failed) = (beats.good.quantile(990), beats.failed.load(Ordering::Relaxed));
    // The clients cannot know, since sent data is still in transit.
    let left = server.open_files();
    println!(
        "nobody else was refused; memory at most {peak} KiB; {left} files open after {:.1?}; heartbeats p99 {p99:?}, {failed} \
         failed",
        began.elapsed()
    );
    assert_eq!(failed, 0);
    let is_bounded = peak < memory + 128 * readers as u64 && left < readers / 2 + 100;
    assert!(!is_long() || is_bounded && p99 < Duration::from_secs(1), "{peak} KiB, {left} files, {p99:?}");
}

/// Responses to the slow readers.
#[derive(Debug, Default)]
struct Seen {
    answered: AtomicUsize,
    refused: AtomicUsize,
}

impl Seen {
    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Requests a list, a page or a search, and reads 1 KiB of it every 0.1 s, or only its beginning.
async fn read_slowly(address: &str, number: usize, seen: &Seen) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    // Keeps the operating system from buffering for the client.
    socket.set_recv_buffer_size(4_096)?;
    let mut connection = socket.connect(address.parse().map_err(std::io::Error::other)?).await?;
    let target = ["/agents", "/agents?limit=1000", "/capabilities/search?q=work&limit=1000"][number % 3];
    connection.write_all(format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await?;
    let mut piece = [0; 1_024];
    connection.read_exact(&mut piece[..12]).await?;
    let is_answered = piece[..12] == *b"HTTP/1.1 200";
    (if is_answered { &seen.answered } else { &seen.refused }).fetch_add(1, Ordering::Relaxed);
    if number.is_multiple_of(2) {
        connection.ready(Interest::ERROR).await?;
        return Ok(());
    }
    while connection.read(&mut piece).await? > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
