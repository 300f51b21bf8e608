//! The client against servers that fail.

use std::time::Duration;

use crate::support::{ACK, Reply, Server, without_listener};
use registry_sdk::contract::{AgentStatus, HealthStatus, Registration};
use registry_sdk::{Error, ListQuery, RegistryClient, RetryPolicy, SearchQuery};
use tokio::time::Instant;

fn client(server: &Server) -> RegistryClient {
    RegistryClient::new(server.url()).unwrap()
}

fn registration() -> Registration {
    Registration::new("a", "Agent", "http://agent:8000")
}

#[tokio::test(start_paused = true)]
async fn temporary_failures_are_tried_three_times() {
    for status in [408, 425, 429, 500, 502, 503, 504] {
        let server = Server::start(move |_, _| Reply::Answer(status, "", "")).await;
        let error = client(&server).heartbeat("a").await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { status: s, .. } if s == status), "{error}");
        assert!(error.is_retryable());
        assert_eq!(server.arrived().len(), 3, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn permanent_failures_are_tried_once() {
    for status in [301, 400, 401, 403, 404, 409, 413, 415, 422, 501] {
        let server = Server::start(move |_, _| Reply::Answer(status, "", "")).await;
        let error = client(&server).heartbeat("a").await.unwrap_err();
        assert!(!error.is_retryable(), "{status}: {error}");
        assert_eq!(server.arrived().len(), 1, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn response_of_a_later_attempt_is_returned() {
    for failure in [Reply::Close, Reply::Truncated, Reply::Answer(503, "", "away")] {
        let server = Server::start(move |_, before| if before < 2 { failure.clone() } else { ACK }).await;
        assert_eq!(client(&server).heartbeat("a").await.unwrap().status, AgentStatus::Active);
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed_up_to_the_maximum_delay() {
    for (asked, least, most) in [("1", 1.0, 5.0), ("3600", 5.0, 5.1)] {
        let header: &'static str = if asked == "1" { "retry-after: 1\r\n" } else { "retry-after: 3600\r\n" };
        let answer = Reply::Answer(503, header, "");
        let server = Server::start(move |_, before| if before == 0 { answer.clone() } else { ACK }).await;
        let patient = client(&server).with_retry(RetryPolicy::registration());
        let began = Instant::now();
        patient.heartbeat("a").await.unwrap();
        let waited = began.elapsed().as_secs_f64();
        assert!(waited >= least && waited <= most, "asked for {asked} s, waited {waited} s");
    }
}

#[tokio::test(start_paused = true)]
async fn no_call_exceeds_its_time_limit() {
    let server = Server::start(|_, _| Reply::Hang).await;
    let policy = RetryPolicy::registration().attempts(100).time_limit(Duration::from_secs(7));
    let client =
        RegistryClient::builder(server.url()).timeout(Duration::from_secs(2)).retry(policy).build().unwrap();
    let began = Instant::now();
    let error = client.heartbeat("a").await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(began.elapsed() <= Duration::from_millis(7_010), "{:?}", began.elapsed());
    assert!(server.arrived().len() >= 3);
}

#[tokio::test(start_paused = true)]
async fn invalid_response_is_reported_as_such() {
    let page = "<html><title>Sign in</title></html>";
    for body in [page, "", "{\"agent_id\": ", "[]", "{\"agent_id\": 7}", "\u{fffd}\0"] {
        let server = Server::start(move |_, _| Reply::Answer(200, "", body)).await;
        let error = client(&server).check_health("a").await.unwrap_err();
        assert!(matches!(error, Error::InvalidResponse { status: 200, .. }), "{body:?}: {error}");
        assert!(!error.to_string().contains('\0'));
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_agent_is_reported_whatever_the_body_of_the_404() {
    for body in ["", "<html>not here</html>", "{\"detail\": ", r#"{"detail":"Agent not found"}"#] {
        let server = Server::start(move |_, _| Reply::Answer(404, "", body)).await;
        assert!(client(&server).heartbeat("a").await.unwrap_err().is_not_found(), "{body}");
    }
}

#[tokio::test]
async fn registry_without_a_listener_is_unreachable() {
    let (_socket, url) = without_listener();
    let client = RegistryClient::new(url).unwrap();
    let error = client.heartbeat("a").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn next_url_is_used_at_once_if_the_first_has_no_listener() {
    let ((_socket, away), there) = (without_listener(), Server::start(|_, _| ACK).await);
    let client =
        RegistryClient::new(format!("{away},{}", there.url())).unwrap().with_retry(RetryPolicy::none());
    for _ in 0..5 {
        client.heartbeat("a").await.unwrap();
    }
    assert_eq!(there.arrived().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn failed_endpoint_is_avoided_for_a_while() {
    for failure in [Reply::Answer(503, "", ""), Reply::Close, Reply::Answer(200, "", "<html>")] {
        let failing = failure.clone();
        let first = Server::start(move |_, _| failing.clone()).await;
        let second = Server::start(|_, _| ACK).await;
        let urls = format!("{},{}", first.url(), second.url());
        let client = RegistryClient::new(urls).unwrap().with_retry(RetryPolicy::none());
        // Not sent to both, because the first one may have received it.
        assert!(client.heartbeat("a").await.is_err(), "{failure:?}");
        assert_eq!(second.arrived().len(), 0);
        for _ in 0..3 {
            client.heartbeat("a").await.unwrap();
        }
        assert_eq!((first.arrived().len(), second.arrived().len()), (1, 3));
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert!(client.heartbeat("a").await.is_err());
        assert_eq!(first.arrived().len(), 2, "after half a minute it is tried again");
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_are_tried_in_turn_if_all_fail() {
    let servers = [
        Server::start(|_, _| Reply::Close).await,
        Server::start(|_, _| Reply::Close).await,
        Server::start(|_, _| Reply::Close).await,
    ];
    let urls: Vec<_> = servers.iter().map(Server::url).collect();
    let client =
        RegistryClient::builder(urls.join(",")).retry(RetryPolicy::discovery().attempts(6)).build().unwrap();
    assert!(client.heartbeat("a").await.unwrap_err().is_retryable());
    let tried: Vec<_> = servers.iter().map(|server| server.arrived().len()).collect();
    assert_eq!(tried, [2, 2, 2]);
}

#[test]
fn invalid_url_is_refused_when_the_client_is_created() {
    for url in
        ["", "registry:8009", "ftp://registry", "unix:/run/registry", "http://", "http://a,", "http://a,b"]
    {
        assert!(matches!(RegistryClient::new(url), Err(Error::Config(_))), "{url}");
    }
}

#[tokio::test]
async fn registry_may_have_a_base_path() {
    let server = Server::start(|_, _| ACK).await;
    for base in ["", "/", "/registry", "/registry/"] {
        let client = RegistryClient::new(format!("{}{base}", server.url())).unwrap();
        client.heartbeat("a").await.unwrap();
        let expected = format!("POST {}/agents/a/heartbeat", base.trim_end_matches('/'));
        assert_eq!(server.arrived().last().unwrap().what, expected);
    }
}

/// A service with only the six basic operations, for example in Python.
#[tokio::test]
async fn service_with_only_the_six_operations_is_enough() {
    let record = r#"{"agent_id":"a","agent_name":"Agent","base_url":"http://agent:8000","status":"active",
        "capabilities":[{"name":"c","description":null}],"last_heartbeat":"2026-11-24T09:30:00.123456"}"#;
    let list: &'static str = format!("[{record}]").leak();
    let found = r#"[{"agent_id":"a","agent_name":"Agent","base_url":"http://agent:8000","status":"active",
        "capability":"c","cost_estimate":null}]"#;
    let script = move |what: &str, _| match what {
        "POST /register" => ACK,
        "POST /agents/a/heartbeat" => Reply::Answer(
            200,
            "",
            r#"{"agent_id":"a","status":"active","last_heartbeat":"2026-11-24T09:30:00Z"}"#,
        ),
        "GET /agents" => Reply::Answer(200, "", list),
        "GET /agents/a" => Reply::Answer(200, "", record),
        "GET /capabilities/search?q=c" => Reply::Answer(200, "", found),
        "GET /health/a" => Reply::Answer(200, "", r#"{"agent_id":"a","status":"unhealthy"}"#),
        "GET /agents/b" => Reply::Answer(404, "", r#"{"detail":"Agent not found"}"#),
        "DELETE /agents/a" => Reply::Answer(405, "", r#"{"detail":"Method Not Allowed"}"#),
        _ => Reply::Answer(404, "", r#"{"detail":"Not Found"}"#),
    };
    let server = Server::start(script).await;
    let client = client(&server);

    let registered = client.register(&registration()).await.unwrap();
    assert_eq!((registered.agent_name.as_str(), registered.heartbeat_timeout), ("Agent", None));
    assert!(client.heartbeat("a").await.unwrap().last_heartbeat.is_some());
    let listed = client.list_agents(ListQuery::all()).await.unwrap();
    assert_eq!(listed.agents, [client.get_agent("a").await.unwrap()]);
    let matches = client.search_capabilities("c").await.unwrap();
    assert_eq!((matches[0].healthy, matches[0].score), (None, None));
    assert_eq!(client.check_health("a").await.unwrap().status, HealthStatus::Unhealthy);
    assert!(client.get_agent("b").await.unwrap_err().is_not_found());
    for error in [
        client.update_status("a", AgentStatus::Busy).await.map(|_| ()).unwrap_err(),
        client.deregister("a").await.unwrap_err(),
        client.get_stats().await.map(|_| ()).unwrap_err(),
        client.get_server_health().await.map(|_| ()).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}

#[tokio::test]
async fn matches_that_do_not_pass_the_health_filter_are_dropped_if_the_registry_ignores_it() {
    let found = r#"[{"agent_id":"dead","status":"active","capability":"work","healthy":false},
        {"agent_id":"living","status":"busy","capability":"work","healthy":true},
        {"agent_id":"unsaid","status":"offline","capability":"work"},
        {"agent_id":"null","status":"active","capability":"work","healthy":null}]"#;
    let server = Server::start(move |_, _| Reply::Answer(200, "", found)).await;
    let client = client(&server);
    for (healthy, target, expected) in [
        (Some(true), "/capabilities/search?q=work&healthy=true", &["living", "unsaid", "null"][..]),
        (Some(false), "/capabilities/search?q=work&healthy=false", &["dead", "unsaid", "null"]),
        (None, "/capabilities/search?q=work", &["dead", "living", "unsaid", "null"]),
    ] {
        let mut query = SearchQuery::new("work");
        query.filter.healthy = healthy;
        let matches = client.search_capabilities(query).await.unwrap();
        let ids: Vec<_> = matches.iter().map(|found| found.agent_id.as_str()).collect();
        assert_eq!(ids, expected, "{healthy:?}");
        assert_eq!(server.arrived().last().unwrap().what, format!("GET {target}"));
    }
}
