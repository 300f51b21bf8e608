//! An empty environment variable means that the option is not set, such as `REGISTRY_ALLOWED_HOST=` in an env
//! file.

use super::{Running, program, run};

#[tokio::test]
async fn empty_variable_counts_as_unset_for_every_option() {
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    let variables: Vec<&str> =
        help.split("[env: ").skip(1).map(|rest| rest.split('=').next().unwrap()).collect();
    assert!(variables.len() > 20 && variables.contains(&"REGISTRY_ALLOWED_HOST"), "{variables:?}");
    let folder = tempfile::tempdir().unwrap();
    let mut command = program();
    command.envs(variables.iter().map(|variable| (*variable, ""))).current_dir(folder.path());
    // The default port may be in use.
    let running = Running::spawn({
        command.args(["--listen", "127.0.0.1:0"]);
        command
    });
    running.client.get_stats().await.unwrap();
    assert!(folder.path().join("agent-registry.db").exists(), "the default database");
}

#[test]
fn empty_variable_counts_as_unset_for_subcommands() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program();
    let ended =
        command.env("REGISTRY_DATABASE_URL", "").current_dir(folder.path()).arg("migrate").output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(folder.path().join("agent-registry.db").exists(), "the default database");
}

#[test]
fn empty_flag_is_still_an_error() {
    for flag in ["--allowed-host", "--trusted-proxy", "--heartbeat-timeout"] {
        assert_eq!(run(&["--listen", "127.0.0.1:0", flag, ""]).status.code(), Some(2), "{flag}");
    }
}
