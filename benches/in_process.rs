//! Work without sockets: tokenizing, indexing, searching, validating, and serializing responses.
//!
//! `cargo bench --bench in_process`. For the selection of agents, see `cargo bench --bench selection`.
#![allow(missing_docs, reason = "criterion's macros make functions of their own")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use registry_sdk::contract::{AgentStatus, Capability, Heartbeat, HeartbeatAck, Registration, Timestamp};
use registry_sdk::internal::{Query, Rank, RequestBody, SearchIndex};

const AGENTS: usize = 10_000;
const VERBS: [&str; 10] =
    ["code", "test", "build", "deploy", "review", "translate", "plan", "lint", "profile", "document"];
const THINGS: [&str; 10] =
    ["python", "rust", "java", "docs", "images", "schemas", "pipelines", "tickets", "reports", "queries"];

/// Six of these words are in thousands of capabilities, and one word is in all of them.
const SENTENCE: &str =
    "Which of you can translate our Python docs and review the reports of the security team?";

fn capability(number: usize) -> Capability {
    let (verb, thing) = (VERBS[number % 10], THINGS[number / 10 % 10]);
    Capability::new(format!("{verb}_{thing}_{}", number % 3))
        .description(format!("Can {verb} {thing} for the team"))
        .cost_estimate("90 tokens")
        .tag(verb)
        .tag(thing)
}

/// Returns three capabilities. Those of a hundred agents have the tag `security`.
fn capabilities(agent: usize) -> Vec<Capability> {
    let mut all: Vec<_> = (agent..agent + 3).map(capability).collect();
    if agent.is_multiple_of(AGENTS / 100) {
        all[0].tags.push("security".to_owned());
    }
    all
}

fn registration() -> Registration {
    let agent = Registration::new("agent-1", "Agent 1", "http://agent-1:8000");
    capabilities(0).into_iter().fold(agent, Registration::capability)
}

fn searching(bench: &mut Criterion) {
    bench.bench_function("analyze a query", |b| {
        b.iter(|| Query::all(black_box("Can translate HTTPRequests for the team")).is_empty());
    });
    let mut index = SearchIndex::default();
    let slots: Vec<u32> = (0..AGENTS).map(|agent| index.insert(&capabilities(agent))).collect();
    bench.bench_function("find 100 of 10,000 agents", |b| {
        b.iter(|| index.search(&Query::all(black_box("security")), |_, _| true).len());
    });
    bench.bench_function("find 100 of 10,000 agents by two terms", |b| {
        b.iter(|| index.search(&Query::all(black_box("code security")), |_, _| true).len());
    });
    bench.bench_function("find the best of 10,000 agents for a sentence of 15 words", |b| {
        b.iter(|| index.search(&Query::best(black_box(SENTENCE)), |_, _| true).len());
    });
    let mut large = SearchIndex::default();
    for agent in 0..10 * AGENTS {
        large.insert(&capabilities(agent));
    }
    bench.bench_function("find the best of 100,000 agents for a sentence of 15 words", |b| {
        b.iter(|| large.search(&Query::best(black_box(SENTENCE)), |_, _| true).len());
    });
    drop(large);
    let again = capabilities(7);
    bench.bench_function("index an agent anew among 10,000", |b| {
        let mut slot = slots[7];
        b.iter(|| {
            index.remove(slot);
            slot = index.insert(&again);
        });
    });
}

fn ranking(bench: &mut Criterion) {
    let ids: Vec<String> = (0..100).map(|number| format!("agent-{number}")).collect();
    let ranks = || -> Vec<Rank<'_>> {
        let mut all = Vec::with_capacity(ids.len());
        for (number, agent_id) in (0..).zip(&ids) {
            let last_heartbeat = Some(Timestamp::from_unix_millis(number * 7_919 % 100));
            all.push(Rank { score: 0.95, status: AgentStatus::Active, last_heartbeat, agent_id });
        }
        all
    };
    bench.bench_function("rank 100 matches", |b| {
        b.iter_batched(ranks, |mut all| all.sort_unstable(), BatchSize::SmallInput);
    });
}

fn reading_and_writing(bench: &mut Criterion) {
    let registration = registration();
    bench.bench_function("validate a registration", |b| {
        b.iter(|| black_box(&registration).validate().is_ok());
    });
    let body = serde_json::to_vec(&registration).unwrap_or_default();
    bench.bench_function("read and validate a registration", |b| {
        b.iter(|| Registration::from_json(black_box(&body)).is_ok_and(|read| read.is_ok()));
    });
    bench.bench_function("read a heartbeat", |b| {
        b.iter(|| Heartbeat::from_json(black_box(br#"{"load":0.5,"active_tasks":2}"#)).is_ok());
    });
    let heard = Timestamp::from_unix_millis(1_795_512_600_123);
    bench.bench_function("write a time", |b| b.iter(|| black_box(heard).to_string()));
    let ack = HeartbeatAck::new("agent-1".to_owned(), AgentStatus::Active, heard, Duration::from_secs(60));
    bench.bench_function("write a heartbeat's answer", |b| {
        b.iter(|| serde_json::to_vec(black_box(&ack)).map(|json| json.len()));
    });
}

criterion_group! {
    name = all;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = searching, ranking, reading_and_writing
}
criterion_main!(all);
