//! A synchronous standby is promoted. It has everything that was acknowledged, and no stream is reset.

use std::time::Instant;

use super::commits::Writers;
use super::truth::Truth;
use super::{SOON, end, register};
use crate::support::{Block, Cluster, EventStream, Server, Switch, eventually, is_long, length, settled};

#[tokio::test(flavor = "multi_thread")]
async fn promotion_of_a_synchronous_standby_loses_nothing() {
    for _ in 0..length(10, 1) {
        let Some(primary) = Cluster::start(&[]).await else { return };
        let switch = Switch::to(primary.port()).await;
        let mut servers = Vec::new();
        for _ in 0..2 {
            servers.push(Server::running(&switch.database_url(), &[]).await);
        }
        let standby = primary.standby().await;
        wait_for_standby(&primary).await;
        register("agent-0").make(&servers[0]).await;
        let truth = Truth::of(&primary).await;
        let mut streams = Vec::new();
        for server in &servers {
            settled("the servers agree", async || truth.is_shown_by(server).await).await;
            streams.push(EventStream::open(server, truth.revision).await);
        }
        let mut writers = Writers::start(&servers);
        writers.have_succeeded().await;

        let killed = Instant::now();
        primary.kill();
        standby.promote().await;
        switch.switch_to(standby.port());
        println!("promoted {:.2?} after the primary was killed", killed.elapsed());
        let promoted = Instant::now();
        writers.have_succeeded().await;
        let took = promoted.elapsed();
        println!("every writer succeeds {took:.2?} after that");
        assert!(!is_long() || took < SOON, "{took:?}");
        writers.stop().await;
        for (server, stream) in servers.iter().zip(&streams) {
            let equal = async || Truth::of(&standby).await.is_shown_by(server).await;
            settled("the servers equal the database", equal).await;
            let whole = async || stream.has(&Truth::of(&standby).await.changes);
            settled("the streams have every change once", whole).await;
            assert!(!stream.blocks().iter().any(Block::is_reset), "a stream began anew");
        }
        writers.are_answered_truly(&Truth::of(&standby).await);
        for server in &mut servers {
            end(server, "after the promotion").await;
        }
    }
}

/// Makes every commit wait for the standby.
///
/// The standby keeps its earlier settings, so it waits for no other standby after its promotion.
async fn wait_for_standby(primary: &Cluster) {
    primary.set("synchronous_standby_names", Some("*")).await;
    eventually("the standby is synchronous", async || {
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        let mut connection = primary.connect().await.unwrap();
        sqlx::query_scalar::<_, i64>(synchronous).fetch_one(&mut connection).await.unwrap() == 1
    })
    .await;
}
