//! Properties that must hold in every world: for each reading at once, and for the final state after the
//! quiet period.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::{
    AgentHealth, AgentRecord, AgentStatus, Registration, StatusUpdate, UnhealthyReason,
};
use tokio::time::Instant;

use super::faults::is_expendable;
use super::host::Row;
use super::server::{Failure, Server};
use super::state::{Gap, State};
use super::world::{Beats, World};

/// Maximum time between two polls before the database counts as unavailable, rounded up, since the registry
/// knows the times of its polls in whole milliseconds.
const OUTAGE_GAP: Duration = Duration::from_millis(1_501);

/// Time until every server shows a missed deadline.
const MARGIN: Duration = Duration::from_secs(3);

/// Time within which callers that change agents notice that they should stop.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Uncertainty about the beginning and end of outages, which readers only notice when they read.
const READING_INTERVAL: Duration = Duration::from_millis(600);

/// Maximum duration of a fault.
const LONGEST_FAULT: Duration = Duration::from_secs(13);

/// Time within which a server writes heartbeats again that a failover has lost: after the timeout of a hanging
/// statement.
const REWRITE_TIME: Duration = Duration::from_secs(2);

/// Time within which every server shows a change.
const LAG: Duration = Duration::from_secs(1);

/// Checks a health response of a server that reaches the database, against what was known when the request
/// was sent.
pub(super) fn judge_reading(
    world: &World,
    server: &Server,
    health: &AgentHealth,
    beats: Beats,
    asked_at: Instant,
) {
    let was_meddled_with = is_expendable(&health.agent_id)
        && world.profile.faults.iter().any(|fault| fault.needs_reconciliation());
    let is_offline = health.reason == Some(UnhealthyReason::HeartbeatMissed);
    match (beats.died_at, beats.acknowledged) {
        (Some(died_at), _) if health.is_healthy() => {
            check_shown_online(world, server, &health.agent_id, died_at, asked_at);
        }
        (None, Some(acknowledged)) if is_offline && !was_meddled_with => {
            check_shown_offline(world, server, &health.agent_id, acknowledged, asked_at);
        }
        _ => {}
    }
}

/// Checks that a dead agent is not shown online for too long.
fn check_shown_online(world: &World, server: &Server, agent_id: &str, died_at: Instant, asked_at: Instant) {
    let (outages, upheaval, upheavals) = {
        let state = world.sim.lock();
        // The server may have judged later than it was asked.
        let outages = possible_outages(&state, server.index, died_at, Instant::now());
        (total(outages), state.upheavals.last().copied(), state.upheavals.len())
    };
    let base = died_at.max(server.started_at).max(upheaval.unwrap_or(died_at));
    // Setting the clock back by less than a few seconds goes unnoticed, and may happen several times.
    let unnoticed = Duration::from_secs(8) * u32::try_from(upheavals).unwrap();
    let limit = world.profile.timeout + outages * 2 + MARGIN + unnoticed;
    if asked_at.saturating_duration_since(base) > limit {
        let (index, silent) = (server.index, asked_at.saturating_duration_since(died_at));
        world.violation(format!(
            "server {index} shows {agent_id} online {silent:?} after it died, with outages of {outages:?}"
        ));
    }
}

/// Checks that a living agent is not shown offline without an excuse.
fn check_shown_offline(
    world: &World,
    server: &Server,
    agent_id: &str,
    acknowledged: Instant,
    asked_at: Instant,
) {
    let timeout = world.profile.timeout;
    // The server may have judged later than it was asked.
    let judged_at = Instant::now();
    let upheaval = world.sim.lock().upheavals.last().copied();
    // Once a server notices an upheaval, it restarts the timeouts and forgets earlier outages.
    let forgets_outages =
        upheaval.is_some_and(|at| asked_at.saturating_duration_since(at) < timeout * 3 + LONGEST_FAULT);
    let silence_of = |server: &Arc<Server>| {
        if forgets_outages {
            judged_at - acknowledged
        } else {
            silence(world, server, acknowledged, judged_at)
        }
    };
    let silences: Vec<_> = world.running_servers().iter().map(silence_of).collect();
    let state = world.sim.lock();
    // A server whose poll is late cannot reach the database, but does not know it yet.
    let last_poll = state.server(server.index).last_poll;
    let is_late = last_poll.is_none_or(|last_poll| asked_at - last_poll > READING_INTERVAL);
    // Until then, a server may show the state before the heartbeat.
    let is_recent = asked_at - acknowledged < LAG;
    // A failover may have lost the heartbeat.
    let may_be_lost = upheaval.is_some_and(|at| at > acknowledged && judged_at - at < REWRITE_TIME);
    // The heartbeats did not reach the row for so long. A server that noticed may have been restarted.
    let was_locked = state.was_locked_after(agent_id, acknowledged) && judged_at - acknowledged > timeout;
    // An old primary accepts heartbeats that the other servers do not see.
    let has_other_hosts = state.is_split(timeout + MARGIN);
    drop(state);
    let is_silent = silences.iter().any(|silence| *silence + READING_INTERVAL > timeout);
    if !(is_silent || is_late || is_recent || may_be_lost || was_locked || has_other_hosts) {
        let (index, elapsed) = (server.index, asked_at - acknowledged);
        world.violation(format!(
            "server {index} shows {agent_id} offline {elapsed:?} after a heartbeat that was acknowledged; on each \
             server its silence is {silences:?}"
        ));
    }
}

/// Returns the total length of intervals that may overlap.
fn total(mut times: Vec<(Instant, Instant)>) -> Duration {
    times.sort();
    let mut counted_to = None;
    let mut total = Duration::ZERO;
    for (from, to) in times {
        let from = counted_to.map_or(from, |counted_to| from.max(counted_to));
        total += to.saturating_duration_since(from);
        counted_to = counted_to.max(Some(to));
    }
    total
}

/// Returns the outages of a server within a period: intervals between two polls that were too long.
///
/// An outage counts for a while after its end, since the agents' retries have backed off.
fn outages(state: &State, server: usize, from: Instant, to: Instant) -> Vec<(Instant, Instant)> {
    let last_poll = state.server(server).last_poll;
    let current = last_poll.map(|begun| Gap { server, begun, ended: to });
    long_gaps(state.poll_gaps.iter().copied().chain(current), server, from, to)
}

/// Returns the periods in which a server may have been unavailable to an agent.
///
/// Parts of a server other than its polls may also lose the database, which readers only notice when they
/// read.
fn possible_outages(state: &State, server: usize, from: Instant, to: Instant) -> Vec<(Instant, Instant)> {
    let responses = long_gaps(state.response_gaps.iter().copied(), server, from, to);
    [outages(state, server, from, to), responses].concat()
}

fn long_gaps(
    gaps: impl Iterator<Item = Gap>,
    server: usize,
    from: Instant,
    to: Instant,
) -> Vec<(Instant, Instant)> {
    let is_relevant = |gap: &Gap| {
        let length = gap.ended - gap.begun;
        gap.server == server && gap.ended + length > from && gap.begun < to && length > OUTAGE_GAP
    };
    gaps.filter(is_relevant).map(|gap| (gap.begun, gap.ended)).collect()
}

/// Returns how much of the time since an agent's last heartbeat counts as silence on a server.
fn silence(world: &World, server: &Server, heard: Instant, now: Instant) -> Duration {
    let heard = heard.max(server.started_at);
    let mut silence = now.duration_since(heard);
    let mut counted_to = heard;
    let mut outages = outages(&world.sim.lock(), server.index, heard, now);
    outages.sort();
    for (begun, ended) in outages {
        let extra = (ended - begun).min(world.profile.timeout / 2);
        let gap = OUTAGE_GAP.min(world.profile.timeout / 2);
        let (start, end) = ((begun + gap).max(counted_to), (ended + extra).min(now));
        silence = silence.saturating_sub(end.saturating_duration_since(start));
        counted_to = counted_to.max(end);
    }
    silence
}

/// Checks a world after its quiet period.
pub(super) async fn judge(world: &World) {
    let servers = world.running_servers();
    if servers.len() < world.profile.servers {
        world.violation(format!("only {} servers run after the quiet", servers.len()));
    }
    for server in &servers {
        check_writes(world, server).await;
    }
    tokio::time::sleep(LAG + LONGEST_PAUSE).await;
    for server in &servers {
        check_view(world, server).await;
    }
    world.end.cancel();
    super::histories::check_calls(world);
    super::histories::check_streams(world);
    for server in &servers {
        server.terminate().await;
    }
}

/// Checks that a server accepts every kind of write.
async fn check_writes(world: &World, server: &Server) {
    let index = server.index;
    let agent_id = format!("final-{index}");
    let registration = Registration::new(&agent_id, "Final", "http://final:8002");
    let registered = server.register(registration.heartbeat_interval(Duration::from_secs(60))).await;
    let heard = server.heartbeat(&agent_id).await;
    let changed = server.update_status(&agent_id, StatusUpdate::new(AgentStatus::Busy)).await;
    let read = server.get_agent(&agent_id).await;
    let failures: Vec<Failure> =
        [registered.as_ref().err(), heard.as_ref().err(), changed.as_ref().err(), read.as_ref().err()]
            .into_iter()
            .flatten()
            .copied()
            .collect();
    if !failures.is_empty() || server.is_stale() {
        let is_stale = server.is_stale();
        world.violation(format!(
            "server {index} does not work after the quiet: {failures:?}, stale {is_stale}"
        ));
    }
    if read.is_ok_and(|record| record.status != AgentStatus::Busy) {
        world.violation(format!("server {index} does not see its own write"));
    }
    if server.deregister(&agent_id).await.is_err() {
        world.violation(format!("server {index} does not remove an agent after the quiet"));
    }
}

/// Compares everything that a server shows with the database.
async fn check_view(world: &World, server: &Server) {
    let index = server.index;
    let (rows, ids) = {
        let state = world.sim.lock();
        let rows = state.primary().image.rows.clone();
        let mut ids: BTreeSet<String> = rows.keys().cloned().collect();
        for host in &state.hosts {
            ids.extend(host.history.iter().map(|past| past.event.agent.agent_id.clone()));
            ids.extend(host.image.rows.keys().cloned());
        }
        (rows, ids)
    };
    for agent_id in ids {
        let shown = server.get_agent(&agent_id).await;
        match (rows.get(&agent_id), shown) {
            // An agent with an unreadable row may be shown in its old state, or not at all.
            (Some(row), _) if !row.is_readable => {}
            (None, Err(Failure::NotFound)) => {}
            (Some(row), Ok(record)) if is_same(world, row, &record) => {}
            (row, shown) => {
                let row = row.map(|row| &row.agent);
                world.violation(format!("server {index} shows {agent_id} as {shown:?}, its row is {row:?}"));
            }
        }
    }
    let beats = world.records.lock().beats.clone();
    for (agent_id, beats) in beats {
        let health = server.check_health(&agent_id).await;
        let is_online = health.as_ref().is_ok_and(AgentHealth::is_healthy);
        let is_readable = rows.get(&agent_id).is_none_or(|row| row.is_readable);
        if is_readable && is_online == beats.died_at.is_some() {
            world.violation(format!("server {index} shows {agent_id} as {health:?} after the quiet"));
        }
    }
}

fn is_same(world: &World, row: &Row, record: &AgentRecord) -> bool {
    let agent = &row.agent;
    // A dead agent's deadline may take effect before it is persisted.
    let died = world.records.lock().beats.get(&agent.agent_id).is_some_and(|beats| beats.died_at.is_some());
    let has_same_status = record.status == agent.status || died && record.status == AgentStatus::Offline;
    has_same_status
        && record.agent_name == agent.agent_name
        && record.base_url == agent.base_url
        && record.revision == u64::try_from(agent.revision).ok()
        && record.registered_at == Some(agent.registered_at)
        && record.registration_tag == Some(agent.registration_tag().to_string())
}

/// Collects the counts for the summary.
pub(super) fn counts(world: &World) -> BTreeMap<&'static str, u64> {
    let state = world.sim.lock();
    let mut counts = world.records.lock().counts.clone();
    counts.insert("events", state.hosts.iter().map(|host| host.history.len() as u64).sum());
    counts.insert("sessions", state.links.len() as u64);
    counts.insert("failovers", state.hosts.len() as u64 - 1);
    let resets = world.records.lock();
    let told = resets.streams.iter().flat_map(|stream| &stream.told);
    counts.insert(
        "resets",
        told.filter(|told| matches!(told, super::watchers::Told::Reset { .. })).count() as u64,
    );
    counts
}
