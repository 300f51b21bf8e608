//! Compares what servers show of agents with what the agents know.
//!
//! Whether a server was wrong depends on the age of the last acknowledged heartbeat, not on the agent's
//! schedule: a busy machine may make an agent late. All times are wall clock times in milliseconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use registry_sdk::contract::{AgentRecord, AgentStatus, STALE_HEADER, Timestamp};
use registry_sdk::{Agent, AgentState};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::Server;

/// Returns the wall clock time in milliseconds.
pub(crate) fn wall_clock() -> i64 {
    Timestamp::from(SystemTime::now()).unix_millis()
}

/// Time within which a server must show what another one has written.
const LAG: i64 = 2_000;

/// Times of the last acknowledged heartbeats of the agents `agent-0`, `agent-1` and so on.
pub(crate) struct Acknowledged {
    agents: Vec<Heartbeats>,
    timeout: i64,
}

struct Heartbeats {
    /// Time when the last heartbeat was sent.
    sent: AtomicI64,
    /// Time since which no heartbeat has been late.
    kept_since: AtomicI64,
}

impl Acknowledged {
    /// Creates the records. An agent that is silent for longer than `timeout` may be offline.
    pub(crate) fn new(agents: usize, timeout: Duration) -> Arc<Self> {
        let none = || Heartbeats { sent: AtomicI64::new(i64::MIN), kept_since: AtomicI64::new(i64::MAX) };
        let timeout = timeout.as_millis().try_into().unwrap();
        Arc::new(Self { agents: (0..agents).map(|_| none()).collect(), timeout })
    }

    /// Records a heartbeat that has just been acknowledged.
    pub(crate) fn note(&self, agent: usize, sent: i64) {
        let (heartbeats, now) = (&self.agents[agent], wall_clock());
        let before = heartbeats.sent.load(Ordering::SeqCst);
        if now.saturating_sub(before) >= self.timeout {
            heartbeats.kept_since.store(now, Ordering::SeqCst);
        }
        heartbeats.sent.store(before.max(sent), Ordering::SeqCst);
    }

    /// Returns for each agent when its last heartbeat was sent, and since when none has been late.
    fn all(&self) -> Vec<(i64, i64)> {
        let of =
            |agent: &Heartbeats| (agent.sent.load(Ordering::SeqCst), agent.kept_since.load(Ordering::SeqCst));
        self.agents.iter().map(of).collect()
    }

    /// Records the acknowledged heartbeats of an SDK agent, as long as the agent lives.
    pub(crate) fn follow(self: &Arc<Self>, number: usize, agent: &Agent) {
        let (mut states, acknowledged) = (agent.watch(), self.clone());
        tokio::spawn(async move {
            loop {
                if let AgentState::Registered { last_heartbeat: Some(heard), .. } =
                    &*states.borrow_and_update()
                {
                    acknowledged.note(number, heard.unix_millis());
                }
                if states.changed().await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Outages of a component.
#[derive(Default)]
pub(crate) struct Outages(Mutex<Vec<(i64, i64)>>);

impl Outages {
    /// Must be called after the outage has begun.
    pub(crate) fn begin(&self) {
        self.0.lock().push((wall_clock(), i64::MAX));
    }

    /// Must be called before the outage ends.
    pub(crate) fn end(&self) {
        self.0.lock().last_mut().unwrap().1 = wall_clock();
    }

    /// Whether an outage overlaps a period.
    pub(crate) fn overlap(&self, from: i64, to: i64) -> bool {
        self.0.lock().iter().any(|&(begin, end)| begin <= to && from <= end)
    }

    /// Returns the time from which a server must show something written at a given time, considering outages.
    pub(crate) fn is_shown_from(&self, written: i64) -> i64 {
        let shown = |shown: i64, &(begin, end): &(i64, i64)| {
            if begin <= shown { shown.max(end.saturating_add(LAG)) } else { shown }
        };
        self.0.lock().iter().fold(written.saturating_add(LAG), shown)
    }

    /// Returns the number of outages within a period, and their total duration.
    pub(crate) fn between(&self, from: i64, to: i64) -> (u32, Duration) {
        let outages = self.0.lock();
        let parts =
            outages.iter().map(|&(begin, end)| end.min(to) - begin.max(from)).filter(|part| *part > 0);
        let (count, total) = parts.fold((0, 0), |(count, total), part| (count + 1, total + part));
        (count, Duration::from_millis(total.try_into().unwrap()))
    }
}

/// A record of a living agent with the status `offline`.
pub(crate) struct ShownOffline {
    /// When the last heartbeat was sent that was acknowledged before the record was requested.
    pub(crate) acknowledged: i64,
    /// Time since which no heartbeat of the agent has been late.
    pub(crate) kept_since: i64,
    /// When the record was requested, and when it arrived.
    pub(crate) asked: i64,
    pub(crate) came: i64,
    /// Whether the server marked its response as stale, since its database is unavailable.
    pub(crate) is_stale: bool,
}

impl ShownOffline {
    /// Returns the maximum time for which the agent had been silent.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(self.came.saturating_sub(self.acknowledged).try_into().unwrap_or(0))
    }
}

/// Reads all records of a server every 10 ms.
pub(crate) struct Reader {
    reads: Arc<AtomicU64>,
    wrong: Arc<Mutex<Vec<String>>>,
    /// Number of agents that were rightly shown as offline: silent for too long, or on a server that could
    /// not know better.
    excused: Arc<AtomicU64>,
    _reading: JoinSet<()>,
}

impl Reader {
    /// Starts reading. `is_wrong` judges each record with the status `offline`.
    pub(crate) fn start(
        url: &str,
        acknowledged: &Arc<Acknowledged>,
        is_wrong: impl Fn(&ShownOffline) -> bool + Send + 'static,
    ) -> Self {
        let (reads, excused) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let wrong = Arc::<Mutex<Vec<String>>>::default();
        let counts = (reads.clone(), excused.clone(), wrong.clone());
        let (url, acknowledged) = (format!("{url}/agents"), acknowledged.clone());
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            let (reads, excused, wrong) = counts;
            let client = reqwest::Client::new();
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let (before, asked) = (acknowledged.all(), wall_clock());
                // A server that is being killed does not respond.
                let Some((records, is_stale)) = read(&client, &url).await else { continue };
                let came = wall_clock();
                reads.fetch_add(1, Ordering::Relaxed);
                for record in records.iter().filter(|record| record.status == AgentStatus::Offline) {
                    let number = record
                        .agent_id
                        .strip_prefix("agent-")
                        .and_then(|number| number.parse::<usize>().ok());
                    let Some(agent) = number else { continue };
                    let (acknowledged, kept_since) = before[agent];
                    let shown = ShownOffline { acknowledged, kept_since, asked, came, is_stale };
                    if is_wrong(&shown) {
                        wrong.lock().push(format!(
                            "{url} at {came}: {} silent for {:?}: {record:?}",
                            record.agent_id,
                            shown.silence()
                        ));
                    } else {
                        excused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Self { reads, wrong, excused, _reading: reading }
    }

    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Prints the results, and fails if any record was wrong.
    pub(crate) fn report(&self, name: &str, server: &Server) {
        let wrong = self.wrong.lock();
        println!(
            "{name}: all records read {} times; living agents shown offline: {} times wrongly, {} times since they were \
             late or the server was cut off",
            self.reads(),
            wrong.len(),
            self.excused.load(Ordering::Relaxed)
        );
        let first = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
        assert!(
            wrong.is_empty(),
            "{name}: living agents were shown offline {} times, first:\n{first}\n{}",
            wrong.len(),
            server.log()
        );
    }
}

async fn read(client: &reqwest::Client, url: &str) -> Option<(Vec<AgentRecord>, bool)> {
    let response = client.get(url).timeout(super::LONG).send().await.ok()?;
    let is_stale = response.headers().contains_key(STALE_HEADER);
    if !response.status().is_success() {
        return None;
    }
    let body = response.bytes().await.ok()?;
    Some((serde_json::from_slice(&body).unwrap(), is_stale))
}
