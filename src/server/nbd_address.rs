//! Addresses of NBD sockets.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::SocketError;

/// Address of an NBD socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(TcpAddress),
}

/// Settings of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdTls {
    /// The directory with the files that [`TlsConfig::read`](crate::device::nbd::TlsConfig::read) reads.
    pub dir: PathBuf,
    /// Require a certificate from clients.
    pub verify_peer: bool,
}

/// A host (name or address) and a port. Port 0 stands for any free port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpAddress {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
}

/// Neither `unix:PATH` nor `HOST:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "write unix:PATH for a Unix socket, or HOST:PORT for TCP, such as 127.0.0.1:10809 or [::1]:10809"
)]
pub struct NbdAddressError;

impl NbdAddress {
    /// The path, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) => None,
        }
    }
}

impl FromStr for NbdAddress {
    type Err = NbdAddressError;

    fn from_str(text: &str) -> Result<Self, NbdAddressError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(NbdAddressError),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp),
        }
    }
}

impl FromStr for TcpAddress {
    type Err = NbdAddressError;

    fn from_str(text: &str) -> Result<Self, NbdAddressError> {
        let (host, port) = text.rsplit_once(':').ok_or(NbdAddressError)?;
        let bracketed = host.strip_prefix('[');
        let host = match bracketed {
            Some(rest) => rest.strip_suffix(']').ok_or(NbdAddressError)?,
            None => host,
        };
        // An IPv6 address without brackets is ambiguous: any of its colons could precede the port.
        let is_host = !host.is_empty() && host.contains(':') == bracketed.is_some();
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
        match port.parse() {
            Ok(port) if is_host && is_port && !host.contains(['/', '[', ']']) => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            _ => Err(NbdAddressError),
        }
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl TcpAddress {
    /// The address to listen at: the first one of the host name. With `only_loopback`, fails if any of its addresses is
    /// reachable from other hosts.
    pub(super) fn resolve(&self, only_loopback: bool) -> Result<SocketAddr, SocketError> {
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let found: Vec<_> = found.map_err(|source| self.unknown(source))?.collect();
        let is_open = |address: &&SocketAddr| !address.ip().to_canonical().is_loopback();
        if let Some(address) = found.iter().find(is_open).filter(|_| only_loopback) {
            return Err(SocketError::NotEncrypted { address: *address });
        }
        let first = found.first().copied();
        first.ok_or_else(|| self.unknown(std::io::ErrorKind::NotFound.into()))
    }

    fn unknown(&self, source: std::io::Error) -> SocketError {
        SocketError::UnknownHost {
            place: self.to_string(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_ports() {
        let unix = "unix:/run/a:b.nbd".parse();
        assert_eq!(unix, Ok(NbdAddress::Unix("/run/a:b.nbd".into())));
        for text in [
            "localhost:10809",
            "127.0.0.1:0",
            "[::1]:10809",
            "[::]:65535",
        ] {
            let Ok(NbdAddress::Tcp(place)) = text.parse() else {
                panic!("{text}");
            };
            assert_eq!(place.to_string(), text);
        }
        for text in [
            "",
            "unix:",
            ":1",
            "host",
            "host:",
            "host:x",
            "host:+1",
            "host:65536",
            "::1:10809",
            "[::1]",
            "[::1:1",
            "::1]:1",
            "[]:1",
            "[host]:1",
            "/run/x",
            "/run/x:1",
            "tcp://host:1",
        ] {
            assert_eq!(text.parse::<NbdAddress>(), Err(NbdAddressError), "{text}");
        }
    }

    #[test]
    fn without_tls_only_loopback_addresses_are_allowed() {
        let resolve = |text: &str, only| text.parse::<TcpAddress>().unwrap().resolve(only);
        for text in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert_eq!(resolve(text, true).unwrap().port(), 1, "{text}");
        }
        for text in [
            "0.0.0.0:1",
            "[::]:1",
            "192.0.2.1:1",
            "[::ffff:192.0.2.1]:1",
            "[fe80::1]:1",
        ] {
            let error = resolve(text, true).unwrap_err();
            assert!(matches!(error, SocketError::NotEncrypted { .. }), "{text}");
            assert!(resolve(text, false).is_ok(), "{text}");
        }
    }
}
