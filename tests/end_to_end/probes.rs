//! The server asks agents how they are, and is not to be misused for it.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use registry_sdk::contract::{
    AgentHealth, AgentStatus, Capability, ProbeMode, ProbeResult, Registration, UnhealthyReason, limits,
};
use registry_sdk::{RegistryClient, SearchQuery, WatchEvent};
use registry_server::Config;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{Database, LONG, client, eventually, on_both_databases, on_postgres};

on_both_databases!(
    two_failures_make_an_agent_unhealthy_and_one_success_heals_it,
    agents_that_fail_their_probes_do_not_push_a_living_one_off_the_page,
    whatever_a_hostile_agent_answers_it_is_only_unhealthy,
    what_probes_found_is_forgotten_with_the_address,
    an_agent_that_answers_401_redirects_within_itself_or_sends_a_page_is_healthy,
    an_answer_of_404_neither_fails_an_agent_nor_heals_it,
    an_agent_is_asked_at_its_health_path,
    an_agent_with_probe_off_is_not_asked_and_an_earlier_failure_is_forgotten,
    no_connection_is_made_where_probes_may_not_go,
    who_is_offline_is_not_asked,
);

/// What takes several servers.
mod replicas {
    use super::*;

    on_postgres!(
        one_replica_asks_and_all_know,
        where_the_one_that_asks_stops_another_takes_over,
        where_the_one_that_asks_is_lost_another_takes_over_when_its_lease_runs_out,
    );
}

const EVERY: Duration = Duration::from_millis(100);
/// Only what never answers takes so long.
const LIMIT: Duration = Duration::from_secs(60);

/// The same where agents are to be too slow.
const SHORT_LIMIT: Duration = Duration::from_millis(400);

fn probing(config: &mut Config) {
    config.probe_interval = Some(EVERY);
    config.probe_timeout = LIMIT;
    config.probe_allow = vec!["127.0.0.1/32".parse().unwrap()];
}

/// Agents of every kind on one server: each answers below the path of its kind.
struct Agents {
    port: u16,
    /// The kinds of the agents that were asked, and what those of no other kind answer in place of 200.
    asked: Arc<Mutex<Vec<String>>>,
    ill: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Agents {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, ill) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let counts = (asked.clone(), ill.clone());
        let health = move |Path(kind): Path<String>| {
            let (asked, ill) = counts.clone();
            async move {
                asked.lock().unwrap().push(kind.clone());
                answer(&kind, ill.load(Ordering::SeqCst)).await
            }
        };
        let app =
            Router::new().route("/{kind}/health", get(health.clone())).route("/{kind}/elsewhere/", get(well));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { port, asked, ill, _serving: serving }
    }

    async fn register(&self, client: &RegistryClient, kind: &str) {
        self.register_at(client, kind, &format!("http://127.0.0.1:{}/{kind}", self.port)).await;
    }

    async fn register_at(&self, client: &RegistryClient, id: &str, base_url: &str) {
        let registration = Registration::new(id, id, base_url).capability(Capability::new("work"));
        client.register(&registration).await.unwrap();
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// How often those of a kind were.
    fn asked_at(&self, kind: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == kind).count()
    }
}

async fn well() -> &'static str {
    r#"{"status":"healthy"}"#
}

async fn answer(kind: &str, ill: usize) -> Response {
    match kind {
        "endless" => {
            let endless = stream::repeat_with(|| Ok::<_, Infallible>(vec![b'x'; 1_024]));
            Body::from_stream(endless).into_response()
        }
        "long" => vec![b'x'; 65 * 1_024].into_response(),
        "trickle" => {
            let trickle = stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Ok::<_, Infallible>("x"), ()))
            });
            Body::from_stream(trickle).into_response()
        }
        "silent" => std::future::pending().await,
        "redirect" => {
            (StatusCode::FOUND, [(LOCATION, "http://169.254.169.254/latest/meta-data/")]).into_response()
        }
        // The same host, and another port.
        "redirect-port" => (StatusCode::FOUND, [(LOCATION, "http://127.0.0.1:1/health")]).into_response(),
        "circle" => (StatusCode::FOUND, [(LOCATION, "/circle/health")]).into_response(),
        "nowhere" => StatusCode::TEMPORARY_REDIRECT.into_response(),
        "301" | "302" | "303" | "307" | "308" => {
            let status = StatusCode::from_bytes(kind.as_bytes()).unwrap();
            (status, [(LOCATION, "elsewhere/")]).into_response()
        }
        "401" | "403" | "404" | "405" | "501" => {
            StatusCode::from_bytes(kind.as_bytes()).unwrap().into_response()
        }
        "failing" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "in-words" => r#"{"status":"unhealthy"}"#.into_response(),
        _ if ill > 0 => StatusCode::from_u16(ill.try_into().unwrap()).unwrap().into_response(),
        _ => well().await.into_response(),
    }
}

async fn health(client: &RegistryClient, id: &str) -> AgentHealth {
    client.check_health(id).await.unwrap()
}

async fn two_failures_make_an_agent_unhealthy_and_one_success_heals_it(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let mut watch = client.watch();
    agents.register(&client, "well").await;
    let probed = async || health(&client, "well").await.probe.is_some_and(|probe| probe.ok);
    eventually("it was asked", probed).await;
    let before = health(&client, "well").await;
    assert!(before.is_healthy() && before.reason.is_none(), "{before:?}");

    let asked = agents.asked();
    agents.ill.store(503, Ordering::SeqCst);
    eventually("it is unhealthy", async || !health(&client, "well").await.is_healthy()).await;
    assert!(agents.asked() >= asked + 2, "one failure is not enough");
    let found = health(&client, "well").await;
    assert_eq!(
        (found.reason, found.agent_status),
        (Some(UnhealthyReason::ProbeFailed), Some(AgentStatus::Active))
    );
    let probe = found.probe.unwrap();
    assert!(!probe.ok && probe.detail.unwrap().contains("503"));
    assert_eq!(client.search_capabilities("work").await.unwrap()[0].healthy, Some(false));
    assert_eq!(client.get_agent("well").await.unwrap().healthy, Some(false));

    agents.ill.store(0, Ordering::SeqCst);
    eventually("it is healthy again", async || health(&client, "well").await.is_healthy()).await;
    // Those who watch were told of both.
    let mut told = Vec::new();
    while told.len() < 2 {
        if let WatchEvent::StatusChanged(agent) = watch.next().await.unwrap() {
            told.push(agent.healthy);
        }
    }
    assert_eq!(told, [Some(false), Some(true)]);
    server.shutdown().await;

    // A server that does not probe does not go by what probes found.
    agents.ill.store(503, Ordering::SeqCst);
    let server = database.start_with(probing).await;
    let client = crate::support::client(&server);
    eventually("it is unhealthy", async || !health(&client, "well").await.is_healthy()).await;
    server.shutdown().await;
    let server = database.start().await;
    let found = health(&crate::support::client(&server), "well").await;
    assert!(found.is_healthy() && found.probe.is_none(), "{found:?}");
    server.shutdown().await;
}

async fn agents_that_fail_their_probes_do_not_push_a_living_one_off_the_page(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let failing = format!("http://127.0.0.1:{}/failing", agents.port);
    for number in 0..limits::DEFAULT_MATCHES {
        agents.register_at(&client, &format!("dead{number:03}"), &failing).await;
    }
    let well = format!("http://127.0.0.1:{}/well", agents.port);
    let living = Registration::new("living", "Living", well).capability(Capability::new("hard_work"));
    client.register(&living).await.unwrap();
    let search = async |query| client.search_capabilities(query).await.unwrap();
    let active = || SearchQuery::new("work").status(AgentStatus::Active);
    // They match better, so they are the whole page.
    let are_dead = async || search(active()).await.iter().all(|found| found.healthy == Some(false));
    eventually("all others are unhealthy", are_dead).await;

    let found = search(active().healthy(true)).await;
    assert_eq!(found.iter().map(|found| &*found.agent_id).collect::<Vec<_>>(), ["living"]);
    let found = search(active().healthy(false).limit(limits::PAGE)).await;
    assert_eq!(found.len(), limits::DEFAULT_MATCHES);
    server.shutdown().await;
}

async fn whatever_a_hostile_agent_answers_it_is_only_unhealthy(database: Database) {
    let impatient = |config: &mut Config| {
        probing(config);
        config.probe_timeout = SHORT_LIMIT;
    };
    let server = database.start_with(impatient).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let kinds = [
        ("trickle", "no complete answer within 400ms"),
        ("silent", "no complete answer within 400ms"),
        ("redirect", "it answered 302, a redirect to another origin: http://169.254.169.254"),
        ("redirect-port", "a redirect to another origin: http://127.0.0.1:1"),
        ("circle", "it redirects more than 5 times"),
        ("nowhere", "it answered 307, a redirect without a location"),
        ("failing", "it answered 500"),
        ("in-words", "it says that it is unhealthy"),
    ];
    agents.register(&client, "well").await;
    for (kind, _) in kinds {
        agents.register(&client, kind).await;
    }
    // Nobody listens there.
    agents.register_at(&client, "gone", "http://127.0.0.1:1").await;
    for (kind, detail) in kinds.into_iter().chain([("gone", "refused")]) {
        // On a busy machine an answer that takes several requests may come too late once.
        let failed = async || {
            let found = health(&client, kind).await;
            let is_told = |said: String| said.contains(detail);
            !found.is_healthy()
                && found.probe.is_some_and(|probe| !probe.ok && probe.detail.is_some_and(is_told))
        };
        eventually(&format!("{kind} is unhealthy, since {detail}"), failed).await;
    }
    eventually("the others do not suffer", async || health(&client, "well").await.is_healthy()).await;
    server.shutdown().await;
}

async fn an_agent_that_answers_401_redirects_within_itself_or_sends_a_page_is_healthy(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    // A long page says nothing of its health, and is not read to its end.
    let kinds = ["401", "403", "301", "302", "303", "307", "308", "endless", "long"];
    for kind in kinds {
        agents.register(&client, kind).await;
    }
    for kind in kinds {
        let rounds = probe_rounds(&client, kind, 3).await;
        assert!(rounds.iter().all(|probe| probe.ok && probe.detail.is_none()), "{kind}: {rounds:?}");
        assert!(health(&client, kind).await.is_healthy(), "{kind}");
    }
    server.shutdown().await;
}

async fn what_probes_found_is_forgotten_with_the_address(database: Database) {
    let patient = |config: &mut Config| {
        probing(config);
        config.probe_timeout = LONG;
    };
    let server = database.start_with(patient).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let url = |kind: &str| format!("http://127.0.0.1:{}/{kind}", agents.port);
    agents.register_at(&client, "moving", &url("failing")).await;
    eventually("it is unhealthy", async || !health(&client, "moving").await.is_healthy()).await;
    // It is asked there, too, and never answers.
    agents.register_at(&client, "moving", &url("silent")).await;
    let found = health(&client, "moving").await;
    assert!(found.is_healthy() && found.probe.is_none(), "{found:?}");
    server.shutdown().await;
}

const CANNOT_TELL: &str = "it answered 404, so the probe cannot tell: set health_path, or probe: off";

async fn an_answer_of_404_neither_fails_an_agent_nor_heals_it(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let kinds = ["404", "405", "501"];
    for kind in kinds {
        agents.register(&client, kind).await;
    }
    for kind in kinds {
        let rounds = probe_rounds(&client, kind, 3).await;
        let detail = CANNOT_TELL.replace("404", kind);
        let is_right = |probe: &ProbeResult| probe.ok && probe.detail.as_ref() == Some(&detail);
        assert!(rounds.iter().all(is_right), "{rounds:?}");
        assert!(health(&client, kind).await.is_healthy(), "{kind}");
    }
    // One that failed before stays so, until it answers well.
    agents.ill.store(503, Ordering::SeqCst);
    agents.register(&client, "ill").await;
    eventually("it is unhealthy", async || !health(&client, "ill").await.is_healthy()).await;
    agents.ill.store(404, Ordering::SeqCst);
    let cannot_tell = async || {
        let found = health(&client, "ill").await;
        found.probe.is_some_and(|probe| probe.detail.as_deref() == Some(CANNOT_TELL))
    };
    eventually("it answers 404", cannot_tell).await;
    let rounds = probe_rounds(&client, "ill", 3).await;
    assert!(rounds.iter().all(|probe| !probe.ok), "{rounds:?}");
    let found = health(&client, "ill").await;
    assert_eq!(found.reason, Some(UnhealthyReason::ProbeFailed), "{found:?}");
    agents.ill.store(0, Ordering::SeqCst);
    eventually("it is healthy again", async || health(&client, "ill").await.is_healthy()).await;
    server.shutdown().await;
}

async fn an_agent_is_asked_at_its_health_path(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let registration = |path: &str| {
        let base_url = format!("http://127.0.0.1:{}/failing", agents.port);
        Registration::new("a", "A", base_url).health_path(path)
    };
    client.register(&registration("/health")).await.unwrap();
    eventually("it is unhealthy", async || !health(&client, "a").await.is_healthy()).await;
    let record = client.register(&registration("/elsewhere/")).await.unwrap();
    assert_eq!((record.health_path.as_deref(), record.healthy), (Some("/elsewhere/"), Some(true)));
    let rounds = probe_rounds(&client, "a", 3).await;
    assert!(rounds.iter().skip(1).all(|probe| probe.ok && probe.detail.is_none()), "{rounds:?}");
    server.shutdown().await;
}

async fn an_agent_with_probe_off_is_not_asked_and_an_earlier_failure_is_forgotten(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let url = format!("http://127.0.0.1:{}/failing", agents.port);
    let registration = || Registration::new("a", "A", &*url).capability(Capability::new("work"));
    client.register(&registration()).await.unwrap();
    eventually("it is unhealthy", async || !health(&client, "a").await.is_healthy()).await;

    let record = client.register(&registration().no_probe()).await.unwrap();
    assert_eq!((record.probe, record.healthy), (Some(ProbeMode::Off), Some(true)));
    let found = health(&client, "a").await;
    assert!(found.is_healthy() && found.reason.is_none() && found.probe.is_none(), "{found:?}");
    assert_eq!(client.search_capabilities("work").await.unwrap()[0].healthy, Some(true));
    // A question that was on its way changes nothing, and there is no other: the rounds go on for another agent.
    agents.register(&client, "well").await;
    probe_rounds(&client, "well", 3).await;
    let asked = agents.asked_at("failing");
    probe_rounds(&client, "well", 3).await;
    assert_eq!(agents.asked_at("failing"), asked);
    let found = health(&client, "a").await;
    assert!(found.is_healthy() && found.probe.is_none(), "{found:?}");

    client.register(&registration().probe(ProbeMode::On)).await.unwrap();
    eventually("it is unhealthy again", async || !health(&client, "a").await.is_healthy()).await;
    server.shutdown().await;
}

/// The results of the next rounds in which an agent is probed.
async fn probe_rounds(client: &RegistryClient, id: &str, count: usize) -> Vec<ProbeResult> {
    let mut seen: Vec<ProbeResult> = Vec::new();
    while seen.len() < count {
        let latest = async || health(client, id).await.probe;
        let last = seen.last().map(|probe| probe.checked_at);
        let is_new = async || latest().await.is_some_and(|probe| Some(probe.checked_at) != last);
        eventually("it is probed", is_new).await;
        seen.extend(latest().await);
    }
    seen
}

async fn no_connection_is_made_where_probes_may_not_go(database: Database) {
    let forbid = |config: &mut Config| {
        probing(config);
        config.probe_allow.clear();
    };
    let server = database.start_with(forbid).await;
    let (client, agents) = (client(&server), Agents::start().await);
    let port = agents.port;
    for (id, host) in [
        ("literal", "127.0.0.1"),
        ("name", "localhost"),
        ("decimal", "2130706433"),
        ("mapped", "[::ffff:7f00:1]"),
    ] {
        agents.register_at(&client, id, &format!("http://{host}:{port}/well")).await;
    }
    agents.register_at(&client, "metadata", "http://169.254.169.254/latest").await;
    for id in ["literal", "name", "decimal", "mapped", "metadata"] {
        let failed = async || !health(&client, id).await.is_healthy();
        eventually(&format!("{id} is unhealthy"), failed).await;
        let said = health(&client, id).await.probe.unwrap().detail.unwrap();
        assert!(said.contains("probes may not reach"), "{id}: {said}");
    }
    assert_eq!(agents.asked(), 0);
    server.shutdown().await;
}

async fn who_is_offline_is_not_asked(database: Database) {
    let server = database.start_with(probing).await;
    let (client, agents) = (client(&server), Agents::start().await);
    agents.register(&client, "well").await;
    eventually("it was asked", async || agents.asked() > 0).await;
    client.update_status("well", AgentStatus::Offline).await.unwrap();
    // One question may still be on its way.
    let settled = async || {
        let before = agents.asked();
        tokio::time::sleep(4 * EVERY).await;
        agents.asked() == before
    };
    eventually("nobody asks any more", settled).await;
    client.heartbeat("well").await.unwrap();
    let before = agents.asked();
    eventually("it is asked again", async || agents.asked() > before).await;
    server.shutdown().await;
}

async fn one_replica_asks_and_all_know(database: Database) {
    let every = Duration::from_millis(200);
    let start = || {
        database.start_with(|config| {
            probing(config);
            config.probe_interval = Some(every);
        })
    };
    let (one, two) = (start().await, start().await);
    let clients = [client(&one), client(&two)];
    let agents = Agents::start().await;
    agents.register(&clients[0], "well").await;
    for client in &clients {
        let knows = async || {
            let health = client.check_health("well").await;
            health.is_ok_and(|health| health.probe.is_some_and(|probe| probe.ok))
        };
        eventually("it knows how the agent answered", knows).await;
    }
    let before = agents.asked();
    let began = std::time::Instant::now();
    tokio::time::sleep(10 * every).await;
    let most = began.elapsed().as_millis() / every.as_millis() + 2;
    assert!(((agents.asked() - before) as u128) <= most, "asked by both: {}", agents.asked() - before);
    agents.ill.store(503, Ordering::SeqCst);
    for client in &clients {
        let knows = async || {
            let health = health(client, "well").await;
            health.reason == Some(UnhealthyReason::ProbeFailed) && health.probe.is_some_and(|probe| !probe.ok)
        };
        eventually("it knows that the agent failed", knows).await;
    }
    one.shutdown().await;
    two.shutdown().await;
}

async fn where_the_one_that_asks_stops_another_takes_over(database: Database) {
    let one = database.start_with(probing).await;
    let agents = Agents::start().await;
    agents.register(&client(&one), "well").await;
    eventually("it was asked", async || agents.asked() > 0).await;
    let two = database.start_with(probing).await;
    one.shutdown().await;
    let before = agents.asked();
    eventually("it is asked again", async || agents.asked() > before + 3).await;
    two.shutdown().await;
}

async fn where_the_one_that_asks_is_lost_another_takes_over_when_its_lease_runs_out(database: Database) {
    let lost = "INSERT INTO agent_registry_lease VALUES ('probe', 'lost', now() + interval '1 second')
                RETURNING extract(epoch FROM until)::float8";
    let server = database.start_with(probing).await;
    server.shutdown().await;
    let mut connection = database.connect().await;
    sqlx::query("DELETE FROM agent_registry_lease").execute(&mut connection).await.unwrap();
    let until: f64 = sqlx::query_scalar(lost).fetch_one(&mut connection).await.unwrap();
    let server = database.start_with(probing).await;
    let agents = Agents::start().await;
    agents.register(&client(&server), "well").await;
    eventually("it is asked", async || agents.asked() > 0).await;
    let now = "SELECT extract(epoch FROM now())::float8";
    let now: f64 = sqlx::query_scalar(now).fetch_one(&mut connection).await.unwrap();
    assert!(now > until, "asked {} s before the lease ran out", until - now);
    server.shutdown().await;
}
