//! Flags: errors and help.

use std::io::Read;

use super::{program, run};

#[test]
fn invalid_setting_is_named() {
    let listen = ["--listen", "127.0.0.1:0"];
    for (arguments, expected) in [
        (&["--heartbeat-timeout", "soon"][..], "30s"),
        (&["--sweep-interval", "0s"], "--sweep-interval"),
        (&["--listen", "here"], "localhost:8009"),
        (&["--listen", ":8009"], "localhost:8009"),
        (&["--listen", "127.0.0.1:65536"], "localhost:8009"),
        (&["--listen", "*:8009"], "localhost:8009"),
        (&["--listen", "http://127.0.0.1:8009"], "localhost:8009"),
        (&["--allowed-host", "*.example.com"], "write each name"),
        (&["--drain-delay", "soon"], "30s"),
        (&["--allowed-host", "http://a.example"], "registry.example.com"),
        (&["--allowed-host", "a.example:80"], "registry.example.com"),
        (&["--allowed-host", "10.0.0.1"], "addresses are always allowed"),
        (&["--trusted-proxy", "proxy"], "10.0.0.0/8"),
        (&["--probe-allow", "10.0.0.0/99"], "10.0.0.0/8"),
        (&["--ard-publisher", "localhost"], "fully qualified domain name"),
        (&["--ard-publisher", "https://agents.example.com"], "fully qualified domain name"),
        (&["--ard-publisher", "agents.example.com:80"], "fully qualified domain name"),
        (&["--ard-publisher", "10.0.0.1"], "fully qualified domain name"),
        (&["--ard-publisher", "*.example.com"], "fully qualified domain name"),
        (&["--ard-publisher", "agents_a.example.com"], "fully qualified domain name"),
        (&["--ard-publisher", "agents-.example.com"], "fully qualified domain name"),
        (&["--ard-publisher", ""], "fully qualified domain name"),
        (&["--public-url", "agents.example.com"], "https://agents.example.com/registry"),
        (&["--public-url", "ftp://agents.example.com"], "https://agents.example.com/registry"),
        (&["--public-url", "https://u@agents.example.com"], "https://agents.example.com/registry"),
        (&["--public-url", "https://agents.example.com/?a"], "https://agents.example.com/registry"),
        (&["--database-url", "mysql://x"], "sqlite: or postgres:"),
        (&["--database-url", "postgres://u:secret@127.0.0.1:1/x"], "127.0.0.1:1"),
        (&["--database-url", "sqlite:///no/such/folder/registry.db"], "/no/such/folder"),
        (&["--log", "a=b=c"], "registry-server:"),
    ] {
        let given: Vec<_> =
            if arguments[0] == "--listen" { arguments.to_vec() } else { [&listen, arguments].concat() };
        let output = run(&given);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(expected), "{arguments:?}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
}

/// A name may become resolvable later, so supervisors must be able to tell this from an invalid setting,
/// which exits with 2.
#[test]
fn unresolved_name_is_not_an_invalid_setting() {
    let ended = run(&["--listen", "no.such.host.invalid:8009", "--database-url", "sqlite::memory:"]);
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("cannot listen on no.such.host.invalid:8009"), "{said}");
    assert_eq!((ended.status.code(), run(&["--listen", "here"]).status.code()), (Some(1), Some(2)));
}

#[test]
fn help_lists_every_flag_with_its_variable_and_default() {
    let mut help = String::new();
    program().arg("--help").spawn().unwrap().stdout.unwrap().read_to_string(&mut help).unwrap();
    for (flag, variable, default) in [
        ("--listen <ADDR>", "REGISTRY_LISTEN", "127.0.0.1:8009"),
        ("--database-url <URL>", "REGISTRY_DATABASE_URL", "sqlite://agent-registry.db"),
        ("--migrate <WHEN>", "REGISTRY_MIGRATE", "default: auto"),
        ("--heartbeat-timeout <DUR>", "REGISTRY_HEARTBEAT_TIMEOUT", "60s"),
        ("--sweep-interval <DUR>", "REGISTRY_SWEEP_INTERVAL", "5s"),
        ("--remove-after <DUR>", "REGISTRY_REMOVE_AFTER", "default: never"),
        ("--drain-delay <DUR>", "REGISTRY_DRAIN_DELAY", "0s"),
        ("--allowed-host <NAME>", "REGISTRY_ALLOWED_HOST", "repeatable"),
        ("--trusted-proxy <CIDR>", "REGISTRY_TRUSTED_PROXY", "repeatable"),
        ("--ard-publisher <DOMAIN>", "REGISTRY_ARD_PUBLISHER", "default: off"),
        ("--public-url <URL>", "REGISTRY_PUBLIC_URL", "default: the request's Host"),
        ("--log-format <FORMAT>", "REGISTRY_LOG_FORMAT", "text"),
        ("--log <FILTER>", "REGISTRY_LOG", "info"),
    ] {
        let (_, after) = help.split_once(flag).unwrap();
        let section = after.split("\n      --").next().unwrap();
        assert!(section.contains(variable) && section.contains(default), "{flag}: {section}");
    }
}
