//! Networks that hang, crawl and change: time limits, endpoints, connections and URLs.

use std::time::Duration;

use registry_sdk::{Error, ListQuery, RegistryClient, RetryPolicy};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{ACK, HEARTBEAT, REGISTER, Reply, Server, agent_of, until};

/// Default time limit of an attempt.
const ATTEMPT: Duration = Duration::from_secs(5);

async fn pair(first: Reply) -> (Server, Server, RegistryClient) {
    let first = Server::start(move |_, _| first.clone()).await;
    let second = Server::start(|_, _| ACK).await;
    let client = RegistryClient::new(format!("{},{}", first.url(), second.url())).unwrap();
    (first, second, client)
}

#[tokio::test(start_paused = true)]
async fn first_endpoint_that_hangs_costs_one_attempt_and_no_call() {
    let (first, _second, client) = pair(Reply::Hang).await;
    let began = Instant::now();
    client.heartbeat("a").await.unwrap();
    assert!(began.elapsed() <= ATTEMPT + Duration::from_millis(10), "{:?}", began.elapsed());
    assert_eq!(first.arrived().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn endpoint_that_failed_is_tried_again_by_one_call_at_a_time() {
    let (first, _second, client) = pair(Reply::Hang).await;
    client.heartbeat("a").await.unwrap();
    // It is avoided for twice as long each time, up to five minutes.
    for (round, pause) in (2..).zip([30, 60, 120, 240, 300, 300]) {
        sleep(Duration::from_millis(pause * 1_000 - 500)).await;
        client.heartbeat("a").await.unwrap();
        assert_eq!(first.arrived().len(), round - 1, "after {pause} s");
        sleep(Duration::from_secs(1)).await;
        let calls: Vec<_> = (0..50)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.heartbeat("a").await.map(|_| Instant::now()) })
            })
            .collect();
        let began = Instant::now();
        let mut slow = 0;
        for call in calls {
            slow += usize::from(call.await.unwrap().unwrap() > began + Duration::from_millis(10));
        }
        assert_eq!((slow, first.arrived().len()), (1, round), "one call tries it, and fails over");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_their_callers_cancel_count_against_the_endpoint() {
    for patience in [100, 250, 1_000].map(Duration::from_millis) {
        let (first, _second, client) = pair(Reply::Hang).await;
        let mut cancelled = 0;
        while timeout(patience, client.heartbeat("a")).await.is_err() {
            cancelled += 1;
            assert!(
                cancelled * patience <= Duration::from_secs(1),
                "it goes to the endpoint that hangs for ever"
            );
        }
        client.heartbeat("a").await.unwrap();
        assert_eq!(first.arrived().len(), usize::try_from(cancelled).unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn request_that_is_cancelled_while_others_are_answered_counts_against_nobody() {
    let first = Server::start(|what, _| if what == HEARTBEAT { ACK } else { Reply::Hang }).await;
    let second = Server::start(|_, _| ACK).await;
    let client = RegistryClient::new(format!("{},{}", first.url(), second.url())).unwrap();
    for _ in 0..10 {
        let cancelled = timeout(Duration::from_secs(2), client.list_agents(ListQuery::all()));
        let (cancelled, ()) = tokio::join!(cancelled, async {
            sleep(Duration::from_secs(1)).await;
            client.heartbeat("a").await.unwrap();
        });
        assert!(cancelled.is_err());
    }
    assert_eq!(second.arrived().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn agent_with_two_endpoints_of_which_one_hangs_is_never_degraded() {
    for interval in [1, 30, 300].map(Duration::from_secs) {
        let first = Server::start(|_, _| Reply::Hang).await;
        let second = Server::start(|_, _| ACK).await;
        let agent =
            agent_of(RegistryClient::new(format!("{},{}", first.url(), second.url())).unwrap(), interval);
        let mut states = agent.watch();
        agent.start_heartbeat(interval).unwrap();
        let hour = sleep(Duration::from_secs(3_600));
        tokio::pin!(hour);
        loop {
            tokio::select! {
                changed = states.changed() => {
                    changed.unwrap();
                    let state = states.borrow_and_update().clone();
                    assert!(!state.is_degraded(), "{interval:?}: {state:?}");
                }
                () = &mut hour => break,
            }
        }
        assert!(first.arrived().len() > 1, "it was tried again");
        let times = second.times(HEARTBEAT);
        let longest = times.windows(2).map(|two| two[1] - two[0]).max().unwrap();
        assert!(longest < interval * 2, "{interval:?}: a silence of {longest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_all_endpoints_down_calls_spread_over_them() {
    let servers = [Server::start(|_, _| Reply::Hang).await, Server::start(|_, _| Reply::Hang).await];
    let urls = format!("{},{}", servers[0].url(), servers[1].url());
    let client = RegistryClient::new(urls).unwrap();
    assert!(client.heartbeat("a").await.is_err());
    let before = servers.each_ref().map(|server| server.arrived().len());
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.heartbeat("a").await })
        })
        .collect();
    sleep(Duration::from_secs(1)).await;
    let asked = [0, 1].map(|index| servers[index].arrived().len() - before[index]);
    assert_eq!(asked, [10, 10]);
    for call in calls {
        assert!(call.await.unwrap().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn call_fails_over_at_once_whatever_the_endpoint_asked_it_to_wait() {
    for failure in [
        Reply::Answer(503, "retry-after: 60\r\n", ""),
        Reply::Answer(200, "content-type: text/html\r\n", "<html>"),
        Reply::Answer(403, "content-type: text/html\r\n", "<html>"),
        Reply::Close,
        Reply::Truncated,
    ] {
        let (_first, _second, client) = pair(failure.clone()).await;
        let began = Instant::now();
        client.heartbeat("a").await.unwrap();
        assert!(began.elapsed() < Duration::from_millis(10), "{failure:?}: {:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_has_time_for_two_attempts() {
    for (policy, attempt) in [
        (RetryPolicy::discovery(), None),
        (RetryPolicy::discovery(), Some(60)),
        (RetryPolicy::registration(), None),
        (RetryPolicy::discovery().time_limit(Duration::from_secs(2)), None),
    ] {
        let server = Server::start(|_, before| if before == 0 { Reply::Hang } else { ACK }).await;
        let mut builder = RegistryClient::builder(server.url()).retry(policy.clone());
        if let Some(seconds) = attempt {
            builder = builder.timeout(Duration::from_secs(seconds));
        }
        builder.build().unwrap().heartbeat("a").await.unwrap_or_else(|error| panic!("{policy:?}: {error}"));
    }
}

/// For example another service at the first address.
#[tokio::test(start_paused = true)]
async fn json_of_another_service_is_a_failure_of_its_endpoint() {
    let first = Server::start(|_, _| Reply::Answer(200, "", r#"{"message":"hello"}"#)).await;
    let second = Server::start(|what, _| {
        Reply::Answer(
            200,
            "",
            match what {
                "GET /agents/a" => r#"{"agent_id":"a","status":"active"}"#,
                "GET /health/a" => r#"{"agent_id":"a","status":"healthy"}"#,
                _ => "[]",
            },
        )
    })
    .await;
    for call in 0..3 {
        let client = RegistryClient::new(format!("{},{}", first.url(), second.url())).unwrap();
        match call {
            0 => drop(client.get_agent("a").await.unwrap()),
            1 => drop(client.check_health("a").await.unwrap()),
            _ => drop(client.list_agents(ListQuery::all()).await.unwrap()),
        }
        client.list_agents(ListQuery::all()).await.unwrap();
    }
    assert_eq!(first.arrived().len(), 3, "one attempt of each client");
}

/// The documented table of time limits matches the code.
#[tokio::test(start_paused = true)]
async fn documented_time_limits_match_the_code() {
    let documents = [include_str!("../../src/lib.rs"), include_str!("../../../docs/agents.md")];
    let seconds = |what: &str| -> f64 {
        let [first, second] = documents.map(|document| {
            let is_row = |line: &&str| line.trim_start_matches("//! ").starts_with(&format!("| {what} |"));
            let row = document.lines().find(is_row).unwrap_or_else(|| panic!("no row for {what}"));
            row.split('|').nth(2).unwrap().trim().trim_end_matches(" s").parse().unwrap()
        });
        assert!(f64::abs(first - second) < f64::EPSILON, "the documents differ on {what}");
        first
    };
    let (connect, attempt, call) = (seconds("a connection"), seconds("an attempt"), seconds("a call"));
    assert!(connect < attempt && 2.0 * attempt < call, "{connect}, {attempt}, {call}");
    let server = Server::start(|_, _| Reply::Hang).await;
    let took = async |policy| {
        let client = RegistryClient::builder(server.url()).retry(policy).build().unwrap();
        let began = Instant::now();
        assert!(matches!(client.heartbeat("a").await, Err(Error::TimedOut { .. })));
        began.elapsed().as_secs_f64()
    };
    assert!((took(RetryPolicy::none()).await - attempt).abs() < 0.01);
    let all = took(RetryPolicy::discovery().attempts(100)).await;
    assert!(all > 2.0 * attempt && all <= call + 0.01, "{all}");
}

/// 12 MB at 1 MB/s: far longer than any attempt or call may wait for a response.
#[tokio::test(start_paused = true)]
async fn long_list_arrives_over_a_slow_link() {
    let record = format!(
        r#"{{"agent_id":"a","agent_name":"A","base_url":"http://a","capabilities":[],"status":"active",
            "metadata":{{"text":"{}"}}}}"#,
        "x".repeat(16_000)
    );
    let list: &'static str = format!("[{}]", vec![record; 750].join(",")).leak();
    let server = Server::start(move |_, _| Reply::Parts(list, 100_000, Duration::from_millis(100))).await;
    let client = RegistryClient::new(server.url()).unwrap();
    let began = Instant::now();
    assert_eq!(client.list_agents(ListQuery::all()).await.unwrap().agents.len(), 750);
    assert!(began.elapsed() > Duration::from_secs(12), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn response_that_only_trickles_is_abandoned() {
    let list: &'static str = format!("[{}]", " ".repeat(100_000)).leak();
    let server = Server::start(move |_, _| Reply::Parts(list, 10, Duration::from_millis(100))).await;
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    let began = Instant::now();
    let error = client.list_agents(ListQuery::all()).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    assert!(began.elapsed() <= ATTEMPT + Duration::from_millis(10), "{:?}", began.elapsed());
    // The agent's own requests have strict limits, however fast the response arrives.
    let endless: &'static str = format!("[{}]", " ".repeat(3_000_000)).leak();
    let server = Server::start(move |what, _| match what {
        REGISTER => ACK,
        _ => Reply::Parts(endless, 70_000, Duration::from_secs(1)),
    })
    .await;
    let interval = Duration::from_secs(8);
    let agent = agent_of(RegistryClient::new(server.url()).unwrap(), interval);
    agent.start_heartbeat(interval).unwrap();
    until("it beats", || server.times(HEARTBEAT).len() >= 20).await;
    let times = server.times(HEARTBEAT);
    assert!(times.windows(2).all(|two| two[1] - two[0] <= 2 * interval));
}

#[tokio::test(start_paused = true)]
async fn connections_are_renewed_after_a_failure_and_every_five_minutes() {
    let server = Server::start(|_, before| if before == 2 { Reply::Answer(503, "", "") } else { ACK }).await;
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    for _ in 0..2 {
        client.heartbeat("a").await.unwrap();
    }
    assert_eq!(server.connections(), 1);
    sleep(Duration::from_secs(20)).await;
    assert!(client.heartbeat("a").await.is_err());
    assert_eq!(server.connections(), 1, "kept alive so far");
    client.heartbeat("a").await.unwrap();
    assert_eq!(server.connections(), 2, "the old one may lead to a host that the name has left");
    for _ in 0..59 {
        sleep(Duration::from_secs(5)).await;
        client.heartbeat("a").await.unwrap();
    }
    assert_eq!(server.connections(), 2);
    sleep(Duration::from_secs(5)).await;
    client.heartbeat("a").await.unwrap();
    assert_eq!(server.connections(), 3);
}

#[tokio::test(start_paused = true)]
async fn outage_does_not_renew_connections_all_the_time() {
    let server = Server::start(|_, _| Reply::Answer(503, "", "")).await;
    let client = RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap();
    for _ in 0..1_000 {
        assert!(client.heartbeat("a").await.is_err());
        sleep(Duration::from_millis(100)).await;
    }
    assert!((5..=11).contains(&server.connections()), "{}", server.connections());
}

#[tokio::test(start_paused = true)]
async fn custom_http_client_is_used_unchanged() {
    let server = Server::start(|_, _| ACK).await;
    let own = reqwest::Client::builder().user_agent("their own").build().unwrap();
    let client = RegistryClient::builder(server.url()).http_client(own).build().unwrap();
    for _ in 0..3 {
        client.heartbeat("a").await.unwrap();
        sleep(Duration::from_secs(301)).await;
    }
    assert!(server.connections() <= 3);
    assert_eq!(server.arrived().len(), 3);
}

#[test]
fn url_with_a_password_is_refused_and_the_password_is_never_shown() {
    for url in [
        "http://user:secret@registry:8009",
        "https://secret@registry",
        "http://one:8009,http://user:secret@two:8009",
        "http://user:secret@",
        "htp://user:secret@registry",
        "user:secret@registry",
        "http://user:sec@ret@registry",
        "http://user:secret%40registry",
    ] {
        let builder = RegistryClient::builder(url);
        assert!(!format!("{builder:?}").contains("sec"), "{builder:?}");
        let error = builder.build().unwrap_err();
        assert!(matches!(error, Error::Config(_)));
        for shown in [error.to_string(), format!("{error:?}"), error.full_message()] {
            assert!(!shown.contains("sec") && !shown.contains("user:"), "{shown}");
        }
    }
    let error = RegistryClient::new("http://user:secret@registry:8009").unwrap_err().to_string();
    assert!(error.contains("registry:8009") && error.contains("token"), "{error}");
    // A proxy may need a password. It is not shown either.
    let builder = RegistryClient::builder("http://registry:8009").proxy("http://user:secret@proxy:3128");
    let client = builder.clone().build().unwrap();
    assert!(!format!("{builder:?} {client:?}").contains("secret"));
    let wrong = RegistryClient::builder("http://registry:8009").proxy("http://user:secret@").build();
    let error = wrong.unwrap_err().to_string();
    assert!(error.contains("proxy") && !error.contains("secret"), "{error}");
}

#[tokio::test]
async fn key_in_the_query_of_a_url_is_not_shown() {
    let server = Server::start(|_, _| ACK).await;
    let url = format!("{}/?key=secret", server.url());
    drop(server);
    let client = RegistryClient::builder(url).retry(RetryPolicy::none()).build().unwrap();
    let error = client.heartbeat("a").await.unwrap_err();
    for shown in [format!("{client:?}"), format!("{error:?}"), error.full_message()] {
        assert!(!shown.contains("secret"), "{shown}");
    }
}

#[tokio::test]
async fn cause_of_an_error_is_kept_as_it_was() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = RegistryClient::builder(url).retry(RetryPolicy::none()).build().unwrap();
    let error = client.heartbeat("a").await.unwrap_err();
    let mut causes = std::iter::successors(std::error::Error::source(&error), |error| error.source());
    let refused = causes.find_map(|error| error.downcast_ref::<std::io::Error>());
    assert_eq!(refused.map(std::io::Error::kind), Some(std::io::ErrorKind::ConnectionRefused));
}

/// Everything that takes a duration accepts the longest one.
#[cfg(all(feature = "testing", feature = "cache"))]
#[tokio::test(start_paused = true)]
async fn longest_durations_mean_for_ever() {
    use registry_sdk::discovery::{DiscoveryCache, EjectionSettings};
    use registry_sdk::testing::MockRegistry;
    use registry_sdk::{
        AlertRule, Capability, Orchestrator, Registration, StatsMonitor, TaskError, TaskQuery,
    };

    let registry = MockRegistry::start().await;
    let policy = RetryPolicy::none()
        .attempts(2)
        .min_delay(Duration::MAX)
        .max_delay(Duration::MAX)
        .time_limit(Duration::MAX);
    let builder =
        RegistryClient::builder(registry.url()).timeout(Duration::MAX).connect_timeout(Duration::MAX);
    let client = builder.retry(policy).build().unwrap();
    let registration =
        Registration::new("a", "Agent", "http://agent:8000").capability(Capability::new("work"));
    client.register(&registration).await.unwrap();
    client.heartbeat("a").await.unwrap();

    let ejection = EjectionSettings::default();
    let ejection = ejection.window(Duration::MAX).base_time(Duration::MAX).max_time(Duration::MAX);
    let orchestrator = Orchestrator::builder(client.clone()).ejection(ejection).build();
    let delegation = || {
        let query = TaskQuery::new("work").check_timeout(Duration::MAX);
        let delegation = orchestrator.delegate(query).time_limit(Duration::MAX);
        delegation.hedge_after(Duration::MAX).attempt_timeout(Duration::MAX).chunk_timeout(Duration::MAX)
    };
    delegation().run(|_| async { Ok(()) }).await.unwrap();
    for _ in 0..3 {
        let failed =
            delegation().attempts(1).run(|_| async { Err::<(), _>(TaskError::transient("it broke")) }).await;
        assert!(failed.is_err());
    }
    let cache =
        DiscoveryCache::builder(client.clone()).ttl(Duration::MAX).stale_if_error(Duration::MAX).build();
    cache.get_agent("a").await.unwrap();
    let monitor =
        StatsMonitor::builder(client.clone()).interval(Duration::MAX).rule(AlertRule::Unreachable).start();
    let mut stats = monitor.stats();
    stats.wait_for(Option::is_some).await.unwrap();
    monitor.stop().await;

    registry.outage(Duration::MAX);
    assert!(client.with_retry(RetryPolicy::none()).heartbeat("a").await.is_err());
    // The next attempt would come after a fraction of forever.
    assert!(!matches!(timeout(Duration::from_secs(3_600), client.heartbeat("a")).await, Ok(Ok(_))));
}
