//! The ceiling: the answer to a heartbeat from a bare axum route, with nothing behind it.
//!
//! `scripts/bench` measures the registry beside it.
#![allow(clippy::print_stdout, reason = "it says where it listens")]

use axum::extract::Path;
use axum::routing::post;
use axum::{Json, Router};
use registry_sdk::contract::{AgentStatus, HeartbeatAck, Timestamp};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:0")).await?;
    println!("http://{}", listener.local_addr()?);
    let app = Router::new().route("/agents/{id}/heartbeat", post(acknowledge));
    axum::serve(listener, app).await?;
    Ok(())
}

async fn acknowledge(Path(id): Path<String>) -> Json<HeartbeatAck> {
    let heard = Timestamp::from(std::time::SystemTime::now());
    Json(HeartbeatAck::new(id, AgentStatus::Active, heard, std::time::Duration::from_secs(60)))
}
