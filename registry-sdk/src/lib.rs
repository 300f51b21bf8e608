//! Register an agent, keep it alive, and find agents that can do a task.
//!
//! An agent registers itself with its capabilities, and counts as alive as long as it sends heartbeats:
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), registry_sdk::Error> {
//! use std::time::Duration;
//! use registry_sdk::{Agent, Capability, Registration, RegistryClient};
//!
//! let client = RegistryClient::new("http://127.0.0.1:8009")?;
//! let registration = Registration::new("sec-scan", "Security Scanner", "http://sec-scan:8003")
//!     .capability(Capability::new("security_scanning").tag("sast"));
//! let agent = Agent::new(client, registration);
//! agent.start_heartbeat(Duration::from_secs(30))?; // registers as soon as the registry is available
//! // … the agent's own work …
//! agent.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! [`Agent::run_until`] does all of this while the agent's own server runs, and handles Ctrl-C and SIGTERM.
//!
//! An orchestrator finds the best healthy agent for a task and delegates the task, failing over to the next candidate:
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let client = registry_sdk::RegistryClient::new("http://127.0.0.1:8009")?;
//! use registry_sdk::{Orchestrator, TaskQuery};
//!
//! let orchestrator = Orchestrator::new(client);
//! let task = serde_json::json!({"repository": "https://example.org/code.git"});
//! let query = TaskQuery::describe("Look for security holes in this repository");
//! let done = orchestrator.delegate(query).post_json::<serde_json::Value>("/execute", &task).await?;
//! println!("{} did it: {}", done.selection.agent.agent_name, done.value);
//! # Ok(())
//! # }
//! ```
//!
//! # Time limits
//!
//! Each limit is shorter than the next one, so that a call with more than one attempt has time for two of them, and for one at
//! each endpoint.
//!
//! | time limit of | default | set by |
//! |---|---|---|
//! | a connection | 2 s | [`RegistryClientBuilder::connect_timeout`]; at most half of the attempt's |
//! | an attempt | 5 s | [`RegistryClientBuilder::timeout`]; at most half of a call. A long response that is arriving may take longer |
//! | a call | 12 s | [`RetryPolicy::time_limit`]; 12 s is the default of [`RetryPolicy::discovery`] |
//!
//! A heartbeat may take up to a quarter of the agent's interval, but no longer than an attempt. Several endpoints share that time.
//!
//! # Logging
//!
//! The SDK logs through [`tracing`](https://docs.rs/tracing). The names of these events and spans are stable:
//!
//! | event | level | fields |
//! |---|---|---|
//! | `registered` | info | `agent_id` |
//! | `heartbeat` | debug | `agent_id` |
//! | `the registry fails: running on without it` | warn, at the first failure | `agent_id`, `error`, `pause` |
//! | `the registry still fails` | debug, at each further one | `agent_id`, `error`, `pause` |
//! | `the registry rejects this agent, so its settings have to be fixed: …` | warn, once for each reason | `agent_id`, `error`, `pause` |
//! | `the registry does not know this agent: registering again` | warn | `agent_id` |
//! | `the registry has another registration of this agent …: registering again` | warn | `agent_id` |
//! | `the registry did not take a changed registration, trying again; heartbeats go on` | warn, at the first failure | `agent_id`, `error`, `pause` |
//! | `another process owns this agent's id, no heartbeats are sent; …` | warn, once | `agent_id`, `instance_id`, `owner_instance_id`, `owner_base_url` |
//! | `another process seems to own the id: registering, so that the age decides` | debug | `agent_id`, `error` |
//! | `cannot see who owns the id` | debug | `agent_id`, `error` |
//! | `the owner of the id is gone or has changed: registering` | debug | `agent_id` |
//! | `a heartbeat is late: the runtime was blocked, or the process suspended; …` | warn | `agent_id`, `late` |
//! | `no heartbeats are sent until the agent is used again` | error, if the agent's runtime has ended | `agent_id`, `error` |
//! | `the registry was not told that the agent drains, …` | warn, at the first failure | `agent_id`, `error`, `pause` |
//! | `asked to end: shutting down` | info | `agent_id` |
//! | `draining` | info | `agent_id`, `active_tasks` |
//! | `not drained in time: shutting down` | warn | `agent_id`, `active_tasks`, `limit` |
//! | `the last request was cut off by the shutdown` | warn | `agent_id` |
//! | `shut down` | info | `agent_id` |
//! | `shut down, but the registry did not take the status` | warn | `agent_id`, `error` |
//! | `shut down; the registry did not answer in time` | warn | `agent_id` |
//! | `trying again` | debug | `error`, `pause` |
//! | `the registry cannot be followed, …` | warn, once per outage, and once more if it becomes a refusal | `error` |
//! | `skipped a record that cannot be read` | warn | `agent_id`, `error` |
//! | `skipped an event that cannot be read, …` | warn | `id`, `event`, `error` |
//! | `skipped an event that is too long to be read, …` | warn | `after`, the id of the event before it |
//! | `ignored a status that no request can set` | warn | `agent_id`, `status` |
//! | `cannot renew the HTTP client, …` | warn | `error` |
//! | `selected` | debug | `agent_id`, `capability` |
//! | `attempt failed` | info | `agent_id`, `attempt`, `kind`, `error` |
//! | `polling a task failed` | debug, with `send_message` | `agent_id`, `error` |
//! | `failed over` | info | `agent_id`, `from`, `attempt` |
//! | `ejected` | warn | `agent_id`, `time` |
//! | `done` | debug | `agent_id`, `attempts` |
//! | `response broke off` | info, after `done` with `send` | `agent_id`, `error` |
//! | `not done` | info | `error` |
//! | `alert raised` | warn | `rule`, `detail` |
//! | `alert cleared` | info | `rule`, `detail` |
//!
//! Spans of requests have the fields of
//! [OpenTelemetry's conventions](https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-client), such as
//! `http.response.status_code`; `error.type` is set if the operation failed.
//!
//! | span | level | fields |
//! |---|---|---|
//! | `heartbeat_loop` | debug | `agent_id` |
//! | `registry_request`, an operation of the registry | info within another span, else debug | `method`, `path`, `error.type` |
//! | `registry_attempt` | as `registry_request` | those of a request, `http.request.resend_count` |
//! | `delegation` | info | `capability`, `idempotency_key`, `error.type` |
//! | `delegation_attempt` | info | `agent_id`, `attempt`, `hedge`, `outcome`, and those of a request if the SDK sent it |
//! | `agent_request`, with the features `axum` and `opentelemetry` | info | those of a request |
//!
//! # Metrics
//!
//! With the feature `metrics`, the SDK records metrics through the [`metrics`](https://docs.rs/metrics) facade:
//!
//! | name | kind | labels |
//! |---|---|---|
//! | `agent_registry_sdk_registrations_total` | counter | `outcome`: `ok`, `failed`, `refused` |
//! | `agent_registry_sdk_heartbeats_total` | counter | `outcome`: `ok`, `failed`, `unknown`, `superseded` |
//! | `agent_registry_sdk_retries_total` | counter | |
//! | `agent_registry_sdk_state` | gauge | `state`; 1 for the state an agent is in, else 0 |
//! | `agent_registry_sdk_tasks_total` | counter | `outcome` of a delegation: `done`, `failed` |
//! | `agent_registry_sdk_attempts_total` | counter | `outcome` of an attempt: `ok`, `agent`, `deployment`, `busy`, `declined`, `task`, `response`, as `FailureKind` |
//! | `agent_registry_sdk_failovers_total` | counter | |
//! | `agent_registry_sdk_ejections_total` | counter | |
//! | `agent_registry_sdk_retry_budget_exhausted_total` | counter | |
//!
//! The gauge also has the label `agent_id`, because a process runs few agents.
//!
//! # Features
//!
//! | feature | default | content |
//! |---|---|---|
//! | `client` | yes | [`RegistryClient`], [`Agent`], [`Orchestrator`], [`Directory`], [`Watch`] and [`StatsMonitor`], over HTTP, on Tokio |
//! | `tls` | yes | HTTPS, with rustls. Without it, no C code is compiled |
//! | `cache` | no | `DiscoveryCache`: discovery that continues during an outage of the registry |
//! | `axum` | no | `HealthEndpoint`, the agent's own `GET /health` or `health_path`, and `DelegatedTask`, an extractor of a task's headers |
//! | `a2a` | no | `discovery::Delegation::send_message`: tasks over the A2A protocol; `a2a`: A2A agent cards as registrations; with `axum`, `a2a::CardEndpoint`: an agent's own endpoint for its card |
//! | `testing` | no | `testing::MockRegistry` and `testing::FaultProxy`: a mock registry and a faulty network, for tests |
//! | `metrics` | no | counters of registrations, heartbeats, retries, states and tasks, through the `metrics` facade |
//! | `openapi` | no | schemas of the [`contract`]'s types for `utoipa`, for a service that answers with them |
//! | `opentelemetry` | no | `trace`: requests to the registry and to agents carry `traceparent` and `tracestate`, and agents on axum continue the trace |
//!
//! Without features, the crate consists of the [`contract`] and its queries, without an HTTP client or a runtime.

#![warn(missing_docs)]
// The client, the server and the mock registry share code, and none of them uses all of it.
#![cfg_attr(not(all(feature = "client", feature = "__internal")), allow(dead_code, unreachable_pub))]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod contract;

#[cfg(feature = "__internal")]
#[doc(hidden)]
pub mod internal;

mod query;
#[cfg(any(feature = "client", feature = "__internal"))]
mod search;

#[cfg(feature = "a2a")]
pub mod a2a;
#[cfg(feature = "client")]
pub mod discovery;

#[cfg(feature = "client")]
mod agent;
#[cfg(feature = "client")]
mod beside;
#[cfg(feature = "client")]
mod builder;
#[cfg(feature = "tls")]
mod certificates;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod credentials;
#[cfg(feature = "client")]
mod decode;
#[cfg(feature = "axum")]
mod delegated_task;
#[cfg(feature = "client")]
mod endpoints;
#[cfg(feature = "client")]
mod error;
#[cfg(feature = "axum")]
mod health;
#[cfg(feature = "client")]
mod http;
#[cfg(feature = "client")]
mod metrics;
#[cfg(feature = "client")]
mod monitor;
#[cfg(feature = "client")]
mod propagation;
#[cfg(feature = "client")]
mod response;
#[cfg(feature = "client")]
mod retry;
#[cfg(feature = "client")]
mod spans;
#[cfg(feature = "client")]
mod transport;
#[cfg(feature = "client")]
mod watch;

#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "opentelemetry")]
pub mod trace;

pub use contract::{AgentRecord, AgentStatus, Capability, CapabilityMatch, Registration};
pub use query::{
    AgentFilter, ListQuery, MatchMode, MatchPage, MetadataFilter, Page, ParseMatchModeError, SearchQuery,
};

#[cfg(feature = "client")]
pub use agent::{
    Agent, AgentState, OnSuperseded, RegistrationOutcome, TaskCounter, TaskGuard, WorkOutcome,
    shutdown_signal,
};
#[cfg(feature = "client")]
pub use builder::RegistryClientBuilder;
#[cfg(feature = "client")]
pub use client::RegistryClient;
#[cfg(feature = "axum")]
pub use delegated_task::{DelegatedTask, DelegatedTaskRejection};
#[cfg(feature = "cache")]
pub use discovery::DiscoveryCache;
#[cfg(feature = "client")]
pub use discovery::{
    DelegateError, Directory, Freshness, HealthSource, Orchestrator, Policy, Selection, TaskError, TaskQuery,
};
#[cfg(feature = "client")]
pub use error::Error;
#[cfg(feature = "axum")]
pub use health::HealthEndpoint;
#[cfg(feature = "client")]
pub use monitor::{Alert, AlertRule, StatsMonitor, StatsMonitorBuilder};
#[cfg(feature = "client")]
pub use retry::RetryPolicy;
#[cfg(feature = "client")]
pub use watch::{Watch, WatchEvent};

/// The examples of the README, which are tested like those of the documentation.
#[cfg(all(
    doctest,
    feature = "a2a",
    feature = "axum",
    feature = "cache",
    feature = "opentelemetry",
    feature = "testing"
))]
#[doc = include_str!("../README.md")]
mod readme {}
