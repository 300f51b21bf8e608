//! The program without the feature `mcp`.
#![cfg(not(feature = "mcp"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn it_says_how_it_is_built_with_mcp() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_registryctl"));
    let output = program.env_clear().arg("mcp").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let reason = String::from_utf8(output.stderr).unwrap();
    assert!(reason.contains("--features mcp"), "{reason}");
}
