//! Starts on databases that do not accept writes, and on addresses of several databases.

use std::process::Stdio;
use std::time::Duration;

use registry_sdk::testing::{Fault, FaultProxy};
use sqlx::{AssertSqlSafe, Executor};

use crate::support::{Cluster, Server, Store, agent, eventually, recovered, start_error};

/// As for a server that is restarted during a failover.
#[tokio::test(flavor = "multi_thread")]
async fn server_started_on_a_standby_serves_once_it_is_promoted() {
    let Some(primary) = Cluster::start(&[]).await else { return };
    let before = Server::running(&primary.url(), &[]).await;
    before.patient_client().register(&agent("kept", "endure")).await.unwrap();
    let standby = primary.standby().await;
    let mut server = Server::new(&standby.url(), &[]);
    server.spawn();
    eventually("the log says that it waits", async || server.log().contains("standby")).await;
    primary.kill();
    standby.promote().await;
    server.started().await;
    server.client().get_agent("kept").await.unwrap();
    println!("well again {:.2?} after the promotion", recovered(&[server]).await);
}

/// A server that waited forever would hide that its URL leads to a standby.
#[tokio::test(flavor = "multi_thread")]
async fn server_exits_if_its_database_stays_read_only() {
    let store = Store::postgres().await;
    Server::running(&store.url, &[]).await.stop().await;
    let name = store.url.rsplit('/').next().unwrap();
    let sql = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    store.administrator().await.execute(AssertSqlSafe(sql)).await.unwrap();
    let began = std::time::Instant::now();
    let error = start_error(&store.url, &[]).await;
    println!("ended after {:.1?}: {error}", began.elapsed());
    assert!(error.contains("default_transaction_read_only"), "{error}");
    assert!(began.elapsed() > Duration::from_secs(10), "it did not wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn url_with_several_hosts_is_rejected() {
    for url in [
        "postgres://registry:secret@one,two/registry",
        "postgres://registry:secret@one:5432,two:5432/registry?target_session_attrs=read-write",
        "postgres://registry:secret@/registry?host=one,two",
    ] {
        let error = start_error(url, &[]).await;
        assert!(error.contains("several hosts") && error.contains("one address"), "{url}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

const UNIT: &str = include_str!("../../../../deploy/registry-server.service");

/// By default, systemd gives up after five starts in ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn systemd_restarts_the_server_until_its_database_is_up() {
    let has_line = |section: &str, expected: &str| section.lines().any(|line| line == expected);
    let (unit, service) = UNIT.split_once("[Service]").unwrap();
    assert!(has_line(unit, "StartLimitIntervalSec=0"), "{unit}");
    assert!(has_line(service, "Restart=on-failure"), "{service}");
    assert!(has_line(service, "RestartPreventExitStatus=2"), "{service}");
    let store = Store::postgres().await;
    let mut url = url::Url::parse(&store.url).unwrap();
    let proxy =
        FaultProxy::start(format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5_432))).await;
    proxy.set(Fault::Refuse);
    url.set_port(Some(proxy.address().port())).unwrap();
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_registry-server"));
    program.args(["--listen", "127.0.0.1:0", "--database-url", url.as_str()]).kill_on_drop(true);
    for _ in 0..6 {
        let status = program.stdin(Stdio::null()).stderr(Stdio::null()).status().await.unwrap();
        assert_eq!(status.code(), Some(1));
    }
    proxy.set(Fault::None);
    Server::running(url.as_str(), &[]).await.client().get_server_health().await.unwrap();
}
