//! Certificates and keys of a server, from files.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig, ServerConnection};

/// Names of the files, which are those of QEMU and nbdkit.
const CERTIFICATE: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";
const AUTHORITIES: &str = "ca-cert.pem";
const REVOKED: &str = "ca-crl.pem";

/// Most bytes of one file.
const FILE_MAX_BYTES: u64 = 16 << 20;

/// Why nothing can be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is nothing in it.
    #[error("{} has no {what} in PEM format", path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// Its contents are of no use.
    #[error("cannot use {}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Two files that know nothing of each other.
    #[error("{} is not the key of the certificate {}", key.display(), certificate.display())]
    Mismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
}

/// What a server encrypts with, and whom it believes.
#[derive(Debug, Clone)]
pub struct TlsConfig(Arc<ServerConfig>);

impl TlsConfig {
    /// Reads `server-cert.pem` and `server-key.pem` in `dir`. With `verify_peer` only clients get in whose certificates
    /// `ca-cert.pem` has signed, and `ca-crl.pem`, if it is there, has not revoked.
    ///
    /// # Errors
    /// When a file cannot be read, or is not what it should be.
    pub fn read(dir: &Path, verify_peer: bool) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(dir.join(KEY), error))?;
        let builder = match verify_peer {
            true => builder.with_client_cert_verifier(verifier(dir, &provider)?),
            false => builder.with_no_client_auth(),
        };
        let identity = SingleCertAndKey::from(identity(dir, &provider)?);
        let mut config = builder.with_cert_resolver(Arc::new(identity));
        // The next connection has another process, which would know nothing of the session.
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
        pem::Error::NoItemsFound => TlsError::Nothing {
            path: key.clone(),
            what: "private key without a password",
        },
        error => unusable(key.clone(), error),
    })?;
    let private = provider.key_provider.load_private_key(private);
    let private = private.map_err(|error| unusable(key.clone(), error))?;
    let identity = CertifiedKey::new(chain, private);
    match identity.keys_match() {
        // Of some kinds of keys nothing can be said; the handshake will show it.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(identity)
        }
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::Mismatch { key, certificate }),
        Err(error) => Err(unusable(certificate, error)),
    }
}

fn verifier(
    dir: &Path,
    provider: &Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let path = dir.join(AUTHORITIES);
    let mut authorities = RootCertStore::empty();
    for authority in all(&path, "certificate")? {
        let added = authorities.add(authority);
        added.map_err(|error| unusable(path.clone(), error))?;
    }
    let revoked = dir.join(REVOKED);
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
        // A list of one authority says nothing of the others.
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| unusable(at_fault, error))
}

/// All objects of one kind in a file; at least one.
fn all<T: PemObject>(path: &Path, what: &'static str) -> Result<Vec<T>, TlsError> {
    let text = contents(path)?;
    let found: Result<Vec<T>, _> = T::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| unusable(path.to_owned(), error))?;
    match found.is_empty() {
        true => Err(TlsError::Nothing {
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

fn unusable(path: PathBuf, error: impl std::fmt::Display) -> TlsError {
    TlsError::Unusable {
        path,
        reason: error.to_string(),
    }
}
