//! The server's certificate and key, and the certificates that it accepts, from files.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig, ServerConnection};

/// Names of the files: the same as in QEMU and nbdkit.
const CERTIFICATE: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";
const CA_CERTIFICATES: &str = "ca-cert.pem";
const CA_REVOCATIONS: &str = "ca-crl.pem";

/// Maximum size of a file.
const FILE_MAX_BYTES: u64 = 16 << 20;

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A file does not contain what it should.
    #[error("{} has no {what} in PEM format", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// The contents of a file cannot be used.
    #[error("cannot use {}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The private key does not belong to the certificate.
    #[error("{} is not the key of the certificate {}", key.display(), certificate.display())]
    Mismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
}

/// The server's side of TLS.
#[derive(Debug, Clone)]
pub struct TlsConfig(Arc<ServerConfig>);

impl TlsConfig {
    /// Reads `server-cert.pem` and `server-key.pem` in `dir`. With `verify_peer`, clients need a certificate that is
    /// signed by one in `ca-cert.pem` and not revoked by `ca-crl.pem`, if that exists.
    ///
    /// # Errors
    /// A file cannot be read, or its contents cannot be used.
    pub fn read(dir: &Path, verify_peer: bool) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| invalid(dir.join(KEY), error))?;
        let builder = match verify_peer {
            true => builder.with_client_cert_verifier(verifier(dir, &provider)?),
            false => builder.with_no_client_auth(),
        };
        let identity = SingleCertAndKey::from(identity(dir, &provider)?);
        let mut config = builder.with_cert_resolver(Arc::new(identity));
        // Each connection has its own process, so sessions cannot be resumed.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn connection(&self) -> io::Result<ServerConnection> {
        ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)
    }
}

fn identity(
    dir: &Path,
    provider: &rustls::crypto::CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
    let chain = all::<CertificateDer<'static>>(&certificate, "certificate")?;
    let text = contents(&key)?;
    let private = PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::Missing {
            path: key.clone(),
            what: "private key without a password",
        },
        error => invalid(key.clone(), error),
    })?;
    let private = provider.key_provider.load_private_key(private);
    let private = private.map_err(|error| invalid(key.clone(), error))?;
    let identity = CertifiedKey::new(chain, private);
    match identity.keys_match() {
        // Some kinds of keys cannot be compared. If they do not match, the handshake fails.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(identity)
        }
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::Mismatch { key, certificate }),
        Err(error) => Err(invalid(certificate, error)),
    }
}

fn verifier(
    dir: &Path,
    provider: &Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let path = dir.join(CA_CERTIFICATES);
    let mut authorities = RootCertStore::empty();
    for authority in all(&path, "certificate")? {
        let added = authorities.add(authority);
        added.map_err(|error| invalid(path.clone(), error))?;
    }
    let revoked = dir.join(CA_REVOCATIONS);
    let lists = match all::<CertificateRevocationListDer<'static>>(&revoked, "revocation list") {
        Err(TlsError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Vec::new(),
        lists => lists?,
    };
    let at_fault = match lists.is_empty() {
        true => path,
        false => revoked,
    };
    WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(provider))
        .with_crls(lists)
        // The revocation list of one authority does not cover the others.
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| invalid(at_fault, error))
}

/// All objects of one kind in a file. Fails if there are none.
fn all<T: PemObject>(path: &Path, what: &'static str) -> Result<Vec<T>, TlsError> {
    let text = contents(path)?;
    let found: Result<Vec<T>, _> = T::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| invalid(path.to_owned(), error))?;
    match found.is_empty() {
        true => Err(TlsError::Missing {
            path: path.to_owned(),
            what,
        }),
        false => Ok(found),
    }
}

fn contents(path: &Path) -> Result<Vec<u8>, TlsError> {
    let fault = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(fault)?;
    let mut text = Vec::new();
    let mut limited = io::Read::take(file, FILE_MAX_BYTES);
    io::Read::read_to_end(&mut limited, &mut text).map_err(fault)?;
    Ok(text)
}

fn invalid(path: PathBuf, error: impl std::fmt::Display) -> TlsError {
    TlsError::Invalid {
        path,
        reason: error.to_string(),
    }
}
