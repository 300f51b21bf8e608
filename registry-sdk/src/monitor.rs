//! Monitoring of the registry's statistics, with alerts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::RegistryClient;
use crate::contract::{RegistryStats, limits};
use crate::error::Error;
use crate::query::SearchQuery;

/// Number of alerts that a slow subscriber may fall behind before it loses the oldest.
const BACKLOG: usize = 256;

/// A situation about which a [`StatsMonitor`] raises an alert. While it lasts, the rule counts as broken.
///
/// While the registry cannot be read, only [`Unreachable`](Self::Unreachable) can change: alerts of the other rules neither begin
/// nor end.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum AlertRule {
    /// The ratio of offline to active agents exceeds this value. Never raises an alert on a registry without
    /// `GET /stats`.
    OfflineAbove(f64),
    /// The registry's statistics cannot be read, for whatever reason: the registry may also refuse the token, or have no
    /// `GET /stats`.
    Unreachable,
    /// The agent with this id is not registered or not healthy. An agent in maintenance is not healthy.
    AgentMissing(String),
    /// There are too few healthy agents with a capability.
    TooFew {
        /// The words that are searched for.
        capability: String,
        /// Minimum number of healthy agents, up to 1,000: the search finds no more.
        at_least: usize,
    },
}

/// A report that a rule was broken, or that it holds again.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Alert {
    /// The rule.
    pub rule: AlertRule,
    /// When the alert began.
    pub started_at: SystemTime,
    /// When the alert ended; `None` if it has just begun.
    pub cleared_at: Option<SystemTime>,
    /// A description of the situation.
    pub detail: String,
    /// The registry's statistics at that moment; `None` if it did not respond.
    pub stats: Option<RegistryStats>,
}

/// A background task that reads a registry's statistics at an interval, and reports when a rule is broken and when it holds
/// again.
///
/// The first check is immediate. The monitor ends with [`StatsMonitor::stop`], or when it is dropped.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), registry_sdk::Error> {
/// use std::time::Duration;
/// use registry_sdk::{AlertRule, RegistryClient, StatsMonitor};
/// use tokio::sync::broadcast::error::RecvError;
///
/// let client = RegistryClient::new("http://127.0.0.1:8009")?;
/// let monitor = StatsMonitor::builder(client)
///     .interval(Duration::from_secs(10))
///     .rule(AlertRule::TooFew { capability: "code_review".to_owned(), at_least: 2 })
///     .start();
/// let mut alerts = monitor.alerts();
/// loop {
///     match alerts.recv().await {
///         Ok(alert) if alert.cleared_at.is_some() => println!("over: {}", alert.detail),
///         Ok(alert) => println!("alert: {}", alert.detail),
///         Err(RecvError::Lagged(lost)) => println!("{lost} alerts were lost"),
///         Err(RecvError::Closed) => break,
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct StatsMonitor {
    /// Tells the task to end.
    stop: DropGuard,
    /// Signals that the task has ended.
    task: JoinHandle<()>,
    alerts: broadcast::Sender<Alert>,
    stats: watch::Receiver<Option<RegistryStats>>,
}

type Callback = Arc<dyn Fn(&Alert) + Send + Sync>;

/// A builder of a [`StatsMonitor`].
pub struct StatsMonitorBuilder {
    client: RegistryClient,
    interval: Duration,
    rules: Vec<AlertRule>,
    raise_after: u32,
    clear_after: u32,
    callback: Option<Callback>,
}

impl std::fmt::Debug for StatsMonitorBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatsMonitorBuilder")
            .field("interval", &self.interval)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

impl StatsMonitorBuilder {
    /// Sets the interval of the checks. Default: 30 s.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(Duration::from_millis(1));
        self
    }

    /// Adds a rule to the default one, which limits offline agents to 30 % of the active ones.
    #[must_use]
    pub fn rule(mut self, rule: AlertRule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Replaces all rules.
    #[must_use]
    pub fn rules(mut self, rules: impl IntoIterator<Item = AlertRule>) -> Self {
        self.rules = rules.into_iter().collect();
        self
    }

    /// Sets how many times in a row a rule has to be broken before an alert begins, and to hold before the alert ends, so that
    /// alerts do not flap. Default: 2 and 2.
    #[must_use]
    pub fn hysteresis(mut self, raise_after: u32, clear_after: u32) -> Self {
        (self.raise_after, self.clear_after) = (raise_after.max(1), clear_after.max(1));
        self
    }

    /// Sets a function that is called for every alert. It runs in the monitor's task and must not block. A panic in it ends the
    /// monitor.
    #[must_use]
    pub fn on_alert(mut self, callback: impl Fn(&Alert) + Send + Sync + 'static) -> Self {
        self.callback = Some(Arc::new(callback));
        self
    }

    /// Starts the monitor.
    ///
    /// # Panics
    /// If called outside of a Tokio runtime.
    #[must_use]
    pub fn start(self) -> StatsMonitor {
        let stop = CancellationToken::new();
        let alerts = broadcast::Sender::new(BACKLOG);
        let (stats, latest) = watch::channel(None);
        let monitor = MonitorTask {
            client: self.client,
            rules: self.rules.into_iter().map(|rule| (rule, RuleState::default())).collect(),
            raise_after: self.raise_after,
            clear_after: self.clear_after,
            callback: self.callback,
            alerts: alerts.clone(),
            stats,
        };
        let task = tokio::spawn(monitor.run(self.interval, stop.clone()));
        StatsMonitor { stop: stop.drop_guard(), task, alerts, stats: latest }
    }
}

impl StatsMonitor {
    /// Returns a builder with the default rule.
    #[must_use]
    pub fn builder(client: RegistryClient) -> StatsMonitorBuilder {
        StatsMonitorBuilder {
            client,
            interval: Duration::from_secs(30),
            rules: vec![AlertRule::OfflineAbove(0.3)],
            raise_after: 2,
            clear_after: 2,
            callback: None,
        }
    }

    /// Returns a receiver of alerts from now on. It closes when the monitor is stopped or dropped.
    ///
    /// A receiver that falls more than 256 alerts behind loses the oldest, and gets `RecvError::Lagged` once.
    #[must_use]
    pub fn alerts(&self) -> broadcast::Receiver<Alert> {
        self.alerts.subscribe()
    }

    /// Returns a receiver of the latest statistics; `None` until the first response, and while the registry does not respond.
    #[must_use]
    pub fn stats(&self) -> watch::Receiver<Option<RegistryStats>> {
        self.stats.clone()
    }

    /// Stops the monitor. A check in progress is cancelled.
    pub async fn stop(self) {
        let Self { stop, task, alerts, .. } = self;
        drop((stop, alerts));
        // A callback that panicked has ended the task as well.
        let _ = task.await;
    }
}

/// The progress of a rule.
#[derive(Debug, Default)]
struct RuleState {
    /// Number of checks in a row that contradict the last report.
    contrary_rounds: u32,
    /// When the reported alert began.
    broken_since: Option<SystemTime>,
}

/// The monitor's task.
struct MonitorTask {
    client: RegistryClient,
    rules: Vec<(AlertRule, RuleState)>,
    raise_after: u32,
    clear_after: u32,
    callback: Option<Callback>,
    alerts: broadcast::Sender<Alert>,
    stats: watch::Sender<Option<RegistryStats>>,
}

/// The result of a rule's check with its description: `Ok` if it holds, `Err` if it is broken, `None` if that is unknown.
type Finding = Option<Result<String, String>>;

impl MonitorTask {
    async fn run(mut self, interval: Duration, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let rounds = async {
            loop {
                ticks.tick().await;
                self.round().await;
            }
        };
        stop.run_until_cancelled(rounds).await;
    }

    async fn round(&mut self) {
        let outcome = self.client.get_stats().await;
        let stats = outcome.as_ref().ok().copied();
        self.stats.send_replace(stats);
        for index in 0..self.rules.len() {
            if let Some(finding) = self.check(&self.rules[index].0, &outcome).await {
                self.apply(index, &finding, stats);
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a registry has fewer agents than that")]
    async fn check(&self, rule: &AlertRule, stats: &Result<RegistryStats, Error>) -> Finding {
        let finding = match (rule, stats) {
            (AlertRule::Unreachable, Err(error)) => Err(error.to_string()),
            (AlertRule::Unreachable, Ok(_)) => Ok("the registry responds".to_owned()),
            (AlertRule::OfflineAbove(share), Ok(stats)) => {
                let (offline, active) = (stats.offline_agents, stats.active_agents);
                let detail = format!("{offline} agents are offline, {active} are active");
                if offline as f64 > share * active as f64 { Err(detail) } else { Ok(detail) }
            }
            (AlertRule::OfflineAbove(_), Err(_)) => return None,
            (AlertRule::AgentMissing(agent_id), _) => match self.client.check_health(agent_id).await {
                Ok(health) if health.is_healthy() => Ok(format!("{agent_id} is healthy")),
                Ok(_) => Err(format!("{agent_id} is not healthy")),
                Err(error) if error.is_not_found() => Err(format!("{agent_id} is not registered")),
                Err(_) => return None,
            },
            (AlertRule::TooFew { capability, at_least }, _) => {
                let search = SearchQuery::new(capability).healthy(true).limit(limits::PAGE);
                let found = self.client.search_capabilities(search).await.ok()?;
                let healthy =
                    found.iter().filter(|agent| agent.healthy.unwrap_or(agent.status.takes_work())).count();
                let detail = format!("{healthy} healthy agents can do {capability:?}, of {at_least} wanted");
                if healthy < *at_least { Err(detail) } else { Ok(detail) }
            }
        };
        Some(finding)
    }

    /// Counts a result, and reports it if it was the same often enough.
    fn apply(&mut self, index: usize, finding: &Result<String, String>, stats: Option<RegistryStats>) {
        let (raise_after, clear_after) = (self.raise_after, self.clear_after);
        let Some((rule, progress)) = self.rules.get_mut(index) else { return };
        let was_broken = progress.broken_since.is_some();
        if finding.is_err() == was_broken {
            progress.contrary_rounds = 0;
            return;
        }
        progress.contrary_rounds += 1;
        if progress.contrary_rounds < if was_broken { clear_after } else { raise_after } {
            return;
        }
        progress.contrary_rounds = 0;
        let now = SystemTime::now();
        let started_at = progress.broken_since.unwrap_or(now);
        progress.broken_since = if was_broken { None } else { Some(now) };
        let (Ok(detail) | Err(detail)) = finding;
        let (rule, detail) = (rule.clone(), detail.clone());
        self.report(&Alert { rule, started_at, cleared_at: was_broken.then_some(now), detail, stats });
    }

    fn report(&self, alert: &Alert) {
        let detail = &alert.detail;
        if alert.cleared_at.is_some() {
            tracing::info!(rule = ?alert.rule, detail, "alert cleared");
        } else {
            tracing::warn!(rule = ?alert.rule, detail, "alert raised");
        }
        if let Some(callback) = &self.callback {
            callback(alert);
        }
        // Sending fails if there is no subscriber.
        let _ = self.alerts.send(alert.clone());
    }
}
