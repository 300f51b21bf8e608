//! Running an agent's work and its registration together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use registry_sdk::contract::Registration;
use registry_sdk::{Agent, Error, RegistryClient};
use tokio::time::{Instant, sleep};

use crate::support::{self, ACK, HEARTBEAT, PROBLEM, REGISTER, Reply, Server, until};

const INTERVAL: Duration = Duration::from_secs(30);

fn agent(server: &Server) -> Agent {
    support::agent(server, INTERVAL)
}

#[tokio::test(start_paused = true)]
async fn agent_is_registered_while_its_work_runs_and_offline_after_it() {
    let server = Server::start(|_, _| ACK).await;
    let work = until("it beats", || server.times(HEARTBEAT).len() >= 3);
    agent(&server).run_until(work).await.unwrap();
    let what: Vec<_> = server.arrived().into_iter().map(|one| one.what).collect();
    assert_eq!(what, [REGISTER, HEARTBEAT, HEARTBEAT, HEARTBEAT, "PUT /agents/a/status"]);
}

#[tokio::test(start_paused = true)]
async fn work_begins_at_once_whatever_the_registry_does() {
    for reply in [Reply::Hang, Reply::Close, Reply::Answer(503, "", ""), Reply::Answer(403, "", "<html>")] {
        let server = Server::start(move |_, _| reply.clone()).await;
        let began = Instant::now();
        let has_begun = Arc::new(AtomicBool::new(false));
        let begins = has_begun.clone();
        let work = async move {
            assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
            begins.store(true, Ordering::SeqCst);
            sleep(100 * INTERVAL).await;
        };
        agent(&server).run_until(work).await.unwrap();
        assert!(has_begun.load(Ordering::SeqCst));
        assert!(server.times(REGISTER).len() > 50, "it goes on trying");
    }
}

#[tokio::test(start_paused = true)]
async fn refusal_by_the_registry_ends_the_work() {
    let server = Server::start(|_, _| Reply::Answer(401, PROBLEM, r#"{"detail":"no token"}"#)).await;
    let error = agent(&server).run_until(std::future::pending::<()>()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { status: 401, .. }), "{error}");
    let invalid = Agent::new(RegistryClient::new(server.url()).unwrap(), Registration::new("", "", "x"));
    let error = invalid.run_until(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.fields().len(), 3, "{error}");
}

#[tokio::test(start_paused = true)]
async fn error_of_the_work_is_returned() {
    let server = Server::start(|_, _| ACK).await;
    let work = async {
        sleep(INTERVAL).await;
        Err::<(), _>(std::io::Error::other("the disk is full"))
    };
    let error = agent(&server).run_until(work).await.unwrap_err();
    assert_eq!(error.full_message(), "the agent's own work failed: the disk is full");
    assert_eq!(server.arrived().last().unwrap().what, "PUT /agents/a/status");
}

#[tokio::test(start_paused = true)]
async fn panic_of_the_work_shuts_the_agent_down_and_propagates() {
    let server = Server::start(|_, _| ACK).await;
    let (agent, heartbeats) = (agent(&server), || server.times(HEARTBEAT).len());
    let running = tokio::spawn({
        let agent = agent.clone();
        async move {
            let work = async {
                sleep(3 * INTERVAL).await;
                panic!("on purpose");
            };
            agent.run_until::<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>(Box::pin(work)).await
        }
    });
    assert!(running.await.unwrap_err().is_panic());
    assert_eq!(server.arrived().last().unwrap().what, "PUT /agents/a/status");
    let before = heartbeats();
    sleep(10 * INTERVAL).await;
    assert_eq!(heartbeats(), before);
}

/// As people write it: without a graceful shutdown of its own.
#[cfg(feature = "axum")]
#[tokio::test(start_paused = true)]
async fn axum_server_is_accepted_as_work() {
    let server = Server::start(|_, _| ACK).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agent = agent(&server);
    tokio::select! {
        ended = agent.run_until(axum::serve(listener, axum::Router::new())) => panic!("{ended:?}"),
        () = until("it beats", || server.times(HEARTBEAT).len() >= 3) => {}
    }
}
