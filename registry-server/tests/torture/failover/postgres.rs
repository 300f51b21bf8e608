//! PostgreSQL loses its last changes under running servers.

use super::scene::Scene;
use super::truth::Truth;
use crate::support::{Cluster, Switch, length, settled};

/// How a primary goes away.
#[derive(Clone, Copy)]
enum Departure {
    Killed,
    /// It runs on, but its connections are closed and no new ones come about.
    CutOff,
    /// It runs on, but nothing passes on its connections, which stay open.
    Hung,
}

/// What happens in the new history.
#[derive(Clone, Copy)]
struct Sequel {
    /// Changes that another server makes before these servers see the new history.
    elsewhere: usize,
    /// Writes to these servers as soon as they take any. The first two change nothing in the new history.
    immediately: usize,
}

const NOTHING: Sequel = Sequel { elsewhere: 0, immediately: 0 };
const FEWER: Sequel = Sequel { elsewhere: 3, immediately: 3 };
/// The last revision is that of the lost history.
const AS_MANY: Sequel = Sequel { elsewhere: 5, immediately: 2 };
/// The same, and the servers have to see it by themselves.
const AS_MANY_ELSEWHERE: Sequel = Sequel { elsewhere: 5, immediately: 0 };
const MORE: Sequel = Sequel { elsewhere: 45, immediately: 10 };
/// The servers themselves are the first to change anything.
const IMMEDIATELY: Sequel = Sequel { elsewhere: 0, immediately: 10 };

#[tokio::test(flavor = "multi_thread")]
async fn standby_without_5_changes_makes_none() {
    fail_over(Departure::Killed, 5, NOTHING).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_without_5_changes_makes_fewer() {
    fail_over(Departure::Killed, 5, FEWER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_without_5_changes_makes_as_many() {
    fail_over(Departure::Killed, 5, AS_MANY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_without_5_changes_makes_more() {
    fail_over(Departure::Killed, 5, MORE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_without_45_changes_makes_more() {
    fail_over(Departure::Killed, 45, MORE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_without_45_changes_is_written_to_at_once() {
    fail_over(Departure::Killed, 45, IMMEDIATELY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_is_cut_off_and_its_standby_makes_as_many() {
    fail_over(Departure::CutOff, 5, AS_MANY_ELSEWHERE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_hangs_and_its_standby_makes_more() {
    fail_over(Departure::Hung, 5, MORE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_copy_is_restored_and_nothing_follows() {
    restore(5, NOTHING).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_copy_is_restored_and_as_much_follows() {
    restore(5, AS_MANY_ELSEWHERE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_copy_is_restored_and_more_follows() {
    restore(5, MORE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_copy_is_restored_and_written_to_at_once() {
    restore(5, IMMEDIATELY).await;
}

/// A standby that lacks the last changes is promoted.
async fn fail_over(departure: Departure, lost: usize, sequel: Sequel) {
    for _ in 0..length(3, 1) {
        let Some(primary) = Cluster::start(&[]).await else { return };
        let switch = Switch::to(primary.port()).await;
        let mut scene = Scene::begin(&switch.database_url(), &primary).await;
        let standby = primary.standby().await;
        scene.keep(&primary).await;
        let revision = Truth::of(&primary).await.revision;
        settled("the standby has what is kept", async || {
            let received = Truth::of(&standby).await.revision;
            if received == revision { Ok(()) } else { Err(format!("{received} of {revision}")) }
        })
        .await;
        standby.stop_receiving().await;
        scene.lose(lost, &primary).await;
        match departure {
            Departure::Killed => primary.kill(),
            Departure::CutOff => switch.close(),
            Departure::Hung => switch.hang(),
        }
        scene.end_third().await;
        standby.promote().await;
        assert_eq!(Truth::of(&standby).await.revision, revision, "the standby has nothing of what is lost");
        scene.change_elsewhere(sequel.elsewhere, &standby).await;
        switch.switch_to(standby.port());
        scene.settle(sequel.immediately, &standby).await;
    }
}

/// The data directory is replaced by a copy that lacks the last changes.
async fn restore(lost: usize, sequel: Sequel) {
    for _ in 0..length(3, 1) {
        let Some(cluster) = Cluster::start(&[]).await else { return };
        let switch = Switch::to(cluster.port()).await;
        let mut scene = Scene::begin(&switch.database_url(), &cluster).await;
        scene.keep(&cluster).await;
        cluster.stop().await;
        cluster.back_up();
        cluster.begin().await;
        scene.lose(lost, &cluster).await;
        switch.close();
        cluster.stop().await;
        scene.end_third().await;
        cluster.restore();
        cluster.begin().await;
        scene.change_elsewhere(sequel.elsewhere, &cluster).await;
        switch.switch_to(cluster.port());
        scene.settle(sequel.immediately, &cluster).await;
    }
}
