//! Signals and shutdown.

use super::{Running, new_token, registration};

#[tokio::test]
async fn sigterm_and_ctrl_c_shut_down_gracefully() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["TERM", "INT"] {
        let mut running = Running::start(&folder.path().join("registry.db"));
        running.client.register(&registration(1)).await.unwrap();
        assert_eq!(running.signal(signal).code(), Some(0), "{signal}");
    }
}

#[tokio::test]
async fn sigterm_drains_for_a_while_and_ctrl_c_or_a_second_sigterm_skips_the_delay() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("registry.db");
    for (delay, second) in [("1h", Some("TERM")), ("1h", Some("INT")), ("10ms", None)] {
        let mut running = Running::start_with(&database, &["--drain-delay", delay]);
        assert!(running.is_ready().await);
        running.send_signal("TERM");
        if let Some(second) = second {
            running.logged("received SIGTERM");
            while running.is_ready().await {}
            // All requests are still answered, even on new connections.
            running.client.register(&registration(1)).await.unwrap();
            assert_eq!(running.signal(second).code(), Some(0), "{second}");
        } else {
            assert_eq!(running.child.wait().unwrap().code(), Some(0));
        }
    }
    let mut running = Running::start_with(&database, &["--drain-delay", "1h"]);
    assert_eq!(running.signal("INT").code(), Some(0));
}

#[tokio::test]
async fn tokens_can_be_reloaded_during_the_drain() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, new_token().1).unwrap();
    let flags = ["--drain-delay", "1h", "--tokens-file", &file.display().to_string()];
    let running = Running::start_with(&folder.path().join("registry.db"), &flags);
    running.send_signal("TERM");
    running.logged("received SIGTERM");
    running.send_signal("HUP");
    running.logged("loaded the tokens");
}

/// A signal that arrives before the server handles it would be lost if it is ignored (such as under `nohup`),
/// or would kill the server.
#[cfg(target_os = "linux")]
#[test]
fn signals_are_caught_before_the_server_listens() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let running = Running::start(&folder.path().join(format!("{round}.db")));
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        for (name, number) in [("HUP", 1), ("INT", 2), ("TERM", 15)] {
            assert!(caught & (1 << (number - 1)) != 0, "{name} is not caught yet");
        }
    }
}
