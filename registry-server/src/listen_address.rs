//! The address that a server listens on.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;

/// Address to listen on: an IP address or a name, and a port.
///
/// A name is resolved when the server starts. If it has several addresses, the first IPv4 address is used, or
/// else the first address.
///
/// ```
/// use registry_server::ListenAddress;
/// let by_name: ListenAddress = "localhost:8009".parse()?;
/// assert_eq!(by_name.to_string(), "localhost:8009");
/// assert_eq!(ListenAddress::from(([127, 0, 0, 1], 0)).to_string(), "127.0.0.1:0");
/// assert!("localhost".parse::<ListenAddress>().is_err());
/// # Ok::<(), registry_server::ParseListenAddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress(String);

/// The error for a text that is not a [`ListenAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write an address and a port, such as 127.0.0.1:8009, localhost:8009 or [::]:8009")]
pub struct ParseListenAddressError;

impl ListenAddress {
    pub(crate) async fn resolve(&self) -> io::Result<SocketAddr> {
        let found: Vec<_> = tokio::net::lookup_host(&self.0).await?.collect();
        let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
        first.copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
    }
}

impl FromStr for ListenAddress {
    type Err = ParseListenAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_named = |host: &str| !host.is_empty() && !host.contains([':', '/', '*', '[', ']']);
        let has_port = |(host, port): (&str, &str)| is_named(host) && port.parse::<u16>().is_ok();
        if text.parse::<SocketAddr>().is_ok() || text.rsplit_once(':').is_some_and(has_port) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseListenAddressError)
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_string())
    }
}

impl From<([u8; 4], u16)> for ListenAddress {
    fn from(address: ([u8; 4], u16)) -> Self {
        SocketAddr::from(address).into()
    }
}
