//! HTTP with kept-alive connections and a timeout for every wait.

use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, BodyReader, Error};

use super::{Body, FetchError};

/// Redirects that are followed.
const REDIRECTS_MAX: u32 = 5;

/// Most idle connections kept alive per server.
const CONNECTIONS_MAX: usize = 64;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Timeout between two received pieces of data.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);

/// Options of requests.
#[derive(Debug, Clone, Default)]
pub struct HttpOptions {
    /// A file with certificates to trust instead of those of the host.
    pub certificates: Option<PathBuf>,
    /// Credentials by host, from netrc.
    pub logins: Vec<Login>,
}

/// Credentials for a host, from a netrc file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The host; `None` for all hosts.
    pub host: Option<String>,
    /// Value of the `Authorization` header.
    pub authorization: String,
}

/// A client of HTTP servers. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Http {
    agent: Agent,
    logins: Arc<[Login]>,
}

impl Http {
    /// Creates a client. Reads the certificates now.
    pub fn new(options: &HttpOptions) -> Self {
        let tls = TlsConfig::builder()
            .root_certs(root_certs(options))
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(REDIRECTS_MAX)
            .max_idle_connections(2 * CONNECTIONS_MAX)
            .max_idle_connections_per_host(CONNECTIONS_MAX)
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_resolve(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(SILENCE_LIMIT))
            .timeout_per_read(Some(SILENCE_LIMIT))
            .timeout_per_write(Some(SILENCE_LIMIT))
            .user_agent(concat!("lazystore/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        Self {
            agent: config.into(),
            logins: options.logins.as_slice().into(),
        }
    }

    /// Requests `url`, which messages call `shown`.
    pub(super) fn get(&self, url: &str, shown: &str) -> Result<Body, FetchError> {
        let response = self.send(url, shown, &[])?;
        check_status(shown, response.status())?;
        let encoding = header(&response, "content-encoding");
        Body::encoded(Named::new(response, shown), encoding.as_deref())
    }

    /// Requests the bytes `range` of `url`, which must have `whole_bytes` in total. The response may have another length.
    pub(super) fn get_range(
        &self,
        url: &str,
        shown: &str,
        range: &Range<u64>,
        whole_bytes: u64,
    ) -> Result<Box<dyn Read + Send>, FetchError> {
        let (first, last) = (range.start, range.end - 1);
        let wanted = format!("bytes={first}-{last}");
        // Part of a compressed file cannot be decompressed.
        let headers = [("Range", wanted.as_str()), ("Accept-Encoding", "identity")];
        let response = self.send(url, shown, &headers)?;
        let refused = |fault: &str| FetchError::Refused {
            reason: format!("{shown}: the server {fault}"),
        };
        if response.status() != StatusCode::PARTIAL_CONTENT {
            check_status(shown, response.status())?;
            return Err(refused("does not support range requests"));
        }
        if header(&response, "content-encoding").is_some_and(|encoding| encoding != "identity") {
            return Err(refused("compresses the responses to range requests"));
        }
        let given = header(&response, "content-range");
        if given != Some(format!("bytes {first}-{last}/{whole_bytes}")) {
            return Err(refused("sent another range than requested"));
        }
        Ok(Box::new(Named::new(response, shown)))
    }

    fn send(
        &self,
        url: &str,
        shown: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<ureq::Body>, FetchError> {
        let mut request = self.agent.get(url);
        if let Some(login) = self.login(url) {
            request = request.header("Authorization", &login.authorization);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.call().map_err(|error| failed(shown, &error))
    }

    fn login(&self, url: &str) -> Option<&Login> {
        let uri = url.parse::<ureq::http::Uri>().ok()?;
        let is_it = |login: &&Login| {
            let host = login.host.as_deref();
            host.is_none_or(|host| uri.host() == Some(host))
        };
        self.logins.iter().find(is_it)
    }
}

fn header(response: &Response<ureq::Body>, name: &str) -> Option<String> {
    let value = response.headers().get(name)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// A body whose errors name its URL.
struct Named {
    reader: BodyReader<'static>,
    shown: String,
}

impl Named {
    fn new(response: Response<ureq::Body>, shown: &str) -> Self {
        Self {
            reader: response.into_body().into_reader(),
            shown: shown.to_owned(),
        }
    }
}

impl Read for Named {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader
            .read(buf)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.shown)))
    }
}

fn check_status(shown: &str, status: StatusCode) -> Result<(), FetchError> {
    let reason = || format!("{shown}: the server answered {status}");
    match status.as_u16() {
        200 => Ok(()),
        403 => Err(FetchError::Denied { reason: reason() }),
        404 | 410 => Err(FetchError::NotFound),
        408 | 425 | 429 | 500.. => Err(FetchError::Passing { reason: reason() }),
        _ => Err(FetchError::Refused { reason: reason() }),
    }
}

fn failed(shown: &str, error: &Error) -> FetchError {
    let reason = format!("{shown}: {error}");
    match error {
        Error::Timeout(_)
        | Error::Io(_)
        | Error::ConnectionFailed
        | Error::HostNotFound
        | Error::Protocol(_) => FetchError::Passing { reason },
        _ => FetchError::Refused { reason },
    }
}

fn root_certs(options: &HttpOptions) -> RootCerts {
    let found = match &options.certificates {
        Some(file) => rustls_native_certs::load_certs_from_paths(Some(file), None),
        None => rustls_native_certs::load_native_certs(),
    };
    for error in &found.errors {
        tracing::debug!("certificates: {error}");
    }
    let certificates = found.certs.iter();
    let certificates =
        certificates.map(|certificate| Certificate::from_der(certificate).to_owned());
    RootCerts::Specific(Arc::new(certificates.collect()))
}
