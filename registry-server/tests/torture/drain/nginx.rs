//! nginx, with upstreams that follow `GET /readyz`.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::balancer::is_ready;
use crate::support::{eventually, free_port, installed};

/// A separate nginx, stopped on drop.
pub(super) struct Nginx {
    pub(super) address: String,
    addresses: Vec<String>,
    folder: tempfile::TempDir,
    process: Child,
}

impl Nginx {
    /// Starts nginx. Returns `None` if it is not installed.
    pub(super) async fn start(addresses: &[String]) -> Option<Self> {
        let program = installed(["nginx", "/usr/sbin/nginx"], "-v")?;
        let folder = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let path = folder.path().display();
        // A request that a server does not answer is an error, and not retried elsewhere. Connections to
        // servers are kept.
        let configuration = format!(
            "daemon off; worker_processes 1; pid {path}/pid; error_log {path}/error.log;
             events {{ worker_connections 1024; }}
             http {{
                 access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;
                 fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;
                 upstream registry {{ include {path}/servers; keepalive 16; }}
                 server {{
                     listen {address};
                     location / {{
                         proxy_pass http://registry; proxy_http_version 1.1; proxy_set_header Connection \"\";
                         proxy_next_upstream off;
                     }}
                 }}
             }}"
        );
        std::fs::write(folder.path().join("nginx.conf"), configuration).unwrap();
        write_servers(folder.path(), addresses, &vec![true; addresses.len()]);
        let mut command = Command::new(program);
        command.arg("-c").arg(folder.path().join("nginx.conf")).arg("-p").arg(folder.path());
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let nginx = Self { address, addresses: addresses.to_vec(), folder, process };
        eventually("nginx passes requests on", async || is_ready(&nginx.address).await).await;
        Some(nginx)
    }

    /// Checks once a second which servers are ready, and marks the others as down. Never returns.
    pub(super) async fn follow(&self) {
        let mut known = vec![true; self.addresses.len()];
        loop {
            let mut ready = Vec::new();
            for address in &self.addresses {
                ready.push(is_ready(address).await);
            }
            if ready != known {
                write_servers(self.folder.path(), &self.addresses, &ready);
                signal("HUP", self.process.id());
                known = ready;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

fn write_servers(folder: &std::path::Path, addresses: &[String], ready: &[bool]) {
    let server = |(address, is_ready): (&String, &bool)| {
        format!("server {address} max_fails=0{};\n", if *is_ready { "" } else { " down" })
    };
    let servers: String = addresses.iter().zip(ready).map(server).collect();
    std::fs::write(folder.join("servers"), servers).unwrap();
}

fn signal(signal: &str, process: u32) {
    let _ = Command::new("kill").args(["-s", signal, &process.to_string()]).status();
}

impl Drop for Nginx {
    fn drop(&mut self) {
        signal("TERM", self.process.id());
        let _ = self.process.wait();
    }
}
