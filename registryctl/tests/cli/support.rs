//! Runs of the program.

use std::process::{Command, Output, Stdio};

/// The program with an empty environment.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_registryctl"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// The program with a registry's URL and arguments.
pub(crate) fn registryctl(url: &str, arguments: &[&str]) -> Command {
    let mut command = program();
    command.env("REGISTRY_URL", url).args(arguments);
    command
}

/// Exit code and output of a command.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
    pub(crate) reasons: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let Output { status, stdout, stderr } = output;
        Self { code: status.code(), said: text(&stdout), reasons: text(&stderr) }
    }
}

pub(crate) fn run(url: &str, arguments: &[&str]) -> Ended {
    registryctl(url, arguments).output().unwrap().into()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
