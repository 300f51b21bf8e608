//! PostgreSQL loses its last changes under running servers.

use super::scene::Scene;
use super::truth::Truth;
use crate::support::{Cluster, Switch, length, settled};

/// How the primary is lost.
#[derive(Clone, Copy)]
enum Departure {
    Killed,
    /// It keeps running, but its connections are closed, and new ones fail.
    CutOff,
    /// It keeps running and its connections stay open, but nothing passes on them.
    Hung,
}

/// The changes in the new history.
#[derive(Clone, Copy)]
struct Sequel {
    /// Number of changes through another server, before these servers see the new history.
    elsewhere: usize,
    /// Number of writes to these servers as soon as they accept any. The first two change nothing in the new
    /// history.
    immediately: usize,
}

const NOTHING: Sequel = Sequel { elsewhere: 0, immediately: 0 };
const FEWER: Sequel = Sequel { elsewhere: 3, immediately: 3 };
/// The last revision is the same as in the lost history.
const AS_MANY: Sequel = Sequel { elsewhere: 5, immediately: 2 };
/// The same, but the servers have to detect it without writes.
const AS_MANY_ELSEWHERE: Sequel = Sequel { elsewhere: 5, immediately: 0 };
const MORE: Sequel = Sequel { elsewhere: 45, immediately: 10 };
/// The servers themselves make the first change.
const IMMEDIATELY: Sequel = Sequel { elsewhere: 0, immediately: 10 };

#[tokio::test(flavor = "multi_thread")]
async fn promoted_standby_lacks_5_changes_and_makes_none() {
    fail_over(Departure::Killed, 5, NOTHING).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promoted_standby_lacks_5_changes_and_makes_fewer() {
    fail_over(Departure::Killed, 5, FEWER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promoted_standby_lacks_5_changes_and_makes_as_many() {
    fail_over(Departure::Killed, 5, AS_MANY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promoted_standby_lacks_5_changes_and_makes_more() {
    fail_over(Departure::Killed, 5, MORE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promoted_standby_lacks_45_changes_and_makes_more() {
    fail_over(Departure::Killed, 45, MORE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promoted_standby_lacks_45_changes_and_is_written_to_at_once() {
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
async fn restored_copy_makes_no_changes() {
    restore(5, NOTHING).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_copy_makes_as_many_changes() {
    restore(5, AS_MANY_ELSEWHERE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_copy_makes_more_changes() {
    restore(5, MORE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_copy_is_written_to_at_once() {
    restore(5, IMMEDIATELY).await;
}

/// Promotes a standby that lacks the last changes.
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

/// Replaces the data directory with a copy that lacks the last changes.
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
