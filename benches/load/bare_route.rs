//! Upper bound for the registry: the same responses from plain axum routes, without any logic.
//!
//! `scripts/bench` compares the registry with it.
#![allow(clippy::print_stdout, reason = "it prints its address")]

use std::time::{Duration, SystemTime};

use axum::extract::Path;
use axum::routing::{get, post};
use axum::{Json, Router};
use registry_sdk::contract::{
    AgentHealth, AgentRecord, AgentStatus, Capability, HealthStatus, HeartbeatAck, Timestamp,
};
use tokio::net::TcpListener;

const TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:0")).await?;
    println!("http://{}", listener.local_addr()?);
    let app = Router::new()
        .route("/agents/{id}/heartbeat", post(acknowledge))
        .route("/agents/{id}", get(record))
        .route("/health/{id}", get(health));
    axum::serve(listener, app).await?;
    Ok(())
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

async fn acknowledge(Path(id): Path<String>) -> Json<HeartbeatAck> {
    Json(HeartbeatAck::new(id, AgentStatus::Active, now(), TIMEOUT))
}

async fn health(Path(id): Path<String>) -> Json<AgentHealth> {
    let mut health = AgentHealth::new(id, HealthStatus::Healthy);
    health.agent_status = Some(AgentStatus::Active);
    health.last_heartbeat = Some(now());
    health.since_heartbeat = Some(Duration::from_millis(3_200));
    health.heartbeat_timeout = Some(TIMEOUT);
    Json(health)
}

async fn record(Path(id): Path<String>) -> Json<AgentRecord> {
    let capability = |name| {
        Capability::new(name)
            .description("Can code python for the team")
            .cost_estimate("90 tokens")
            .tag("code")
            .tag("python")
    };
    let mut record = AgentRecord::new(id, AgentStatus::Active);
    "Agent".clone_into(&mut record.agent_name);
    "http://agent:8000".clone_into(&mut record.base_url);
    record.capabilities = ["code_python", "test_python", "build_python"].map(capability).into();
    (record.registered_at, record.last_heartbeat) = (Some(now()), Some(now()));
    record.heartbeat_timeout = Some(TIMEOUT);
    Json(record)
}
