//! More connections than the server takes, of clients that say nothing, a head byte by byte, or no body.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{LONG, Load, Server, Store, agent, eventually, is_long, length};

const AGENTS: u64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn dawdlers() {
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
            // Nothing, where it was closed while it was spoken to.
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
    // Without a refusal the last connection came after the first was closed, and each is given 10 s.
    let has_refused = refused.load(Ordering::Relaxed) > 0 || over > Duration::from_secs(19);
    assert!(has_refused && failed == 0, "{refused:?} refused, {failed} failed");
    assert!(
        !is_long() || over < Duration::from_secs(45) && p99 < Duration::from_secs(1),
        "{over:?}, {p99:?}"
    );
}

/// What the server says to one who dawdles.
async fn dawdle(address: &str, number: usize) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    let (begin, pause): (&[u8], _) = match number % 3 {
        0 => (b"", Duration::from_secs(3_600)),
        1 => (b"GET /stats HTTP/1.1\r\nx: ", Duration::from_secs(1)),
        _ => (
            b"POST /register HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 200000\r\n\r\n",
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
