//! Files of binary caches: in a directory, over HTTP, in S3.

mod error;
mod http;
mod login;
mod retry;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use ureq::http::Uri;

pub use error::{FetchError, LocationError};
pub use http::{Http, HttpOptions, Login};
pub use login::{netrc, s3_credentials};

use crate::closure::narinfo::Compression;
use crate::source::decompress::decompress;

/// Validity of a signed S3 request: longer than its first byte may take.
const SIGNED_FOR: Duration = Duration::from_secs(600);

/// A binary cache.
#[derive(Debug, Clone)]
pub struct BinaryCache {
    /// The URL as given. It identifies the cache in messages and in the cache directory.
    url: String,
    place: CacheLocation,
    trusts_parts: bool,
}

#[derive(Debug, Clone)]
enum CacheLocation {
    Directory(PathBuf),
    /// Without a trailing slash.
    Http(String),
    S3(Box<S3>),
}

#[derive(Debug, Clone)]
struct S3 {
    bucket: Bucket,
    /// `None` if the bucket is public.
    credentials: Option<Credentials>,
}

/// An open file of a cache.
pub struct Body {
    /// Its bytes, with the transport's own compression removed.
    pub reader: Box<dyn Read + Send>,
}

impl BinaryCache {
    /// Parses `file://DIR`, `http://HOST/...`, `https://HOST/...` or `s3://BUCKET?endpoint=...&region=...`. The query of the
    /// first three, which Nix allows, is ignored. `secrets` are the S3 credentials, if any.
    ///
    /// # Errors
    /// The URL is not of one of these forms.
    pub fn parse(url: &str, secrets: Option<Credentials>) -> Result<Self, LocationError> {
        let fault = |fault| LocationError {
            url: url.to_owned(),
            fault,
        };
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| fault("it has no ://"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let place = match scheme {
            "file" if place.starts_with('/') => CacheLocation::Directory(place.into()),
            "file" => return Err(fault("the directory must be absolute")),
            "http" | "https" => {
                let base = format!("{scheme}://{}", place.trim_end_matches('/'));
                let uri = base.parse::<Uri>();
                let has_host = uri.is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()));
                CacheLocation::Http(
                    has_host
                        .then_some(base)
                        .ok_or_else(|| fault("it has no host"))?,
                )
            }
            "s3" => CacheLocation::S3(Box::new(s3(place, query, secrets).map_err(fault)?)),
            _ => {
                return Err(fault(
                    "only file://, http://, https:// and s3:// are supported",
                ));
            }
        };
        Ok(Self {
            url: url.to_owned(),
            place,
            trusts_parts: false,
        })
    }

    /// Trusts parts of NARs before the whole NAR has been fetched and verified.
    pub fn trust_parts(&mut self) {
        self.trusts_parts = true;
    }

    /// Returns whether parts of NARs are trusted.
    pub fn trusts_parts(&self) -> bool {
        self.trusts_parts
    }

    /// Returns the URL as given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Opens the file `name`, a path relative to the cache or a URL of its own. Retries temporary failures at most `retries`
    /// times.
    ///
    /// # Errors
    /// The file does not exist or cannot be read.
    pub fn open(&self, http: &Http, name: &str, retries: Retries) -> Result<Body, FetchError> {
        retry::retry(retries, || self.open_once(http, name))
    }

    /// Reads the whole file `name` of at most `max_bytes`.
    ///
    /// # Errors
    /// As [`open`](Self::open), or it is longer.
    pub fn read(
        &self,
        http: &Http,
        name: &str,
        max_bytes: usize,
        retries: Retries,
    ) -> Result<Vec<u8>, FetchError> {
        retry::retry(retries, || {
            let body = self.open_once(http, name)?;
            let mut bytes = Vec::new();
            let read = body
                .reader
                .take(max_bytes as u64 + 1)
                .read_to_end(&mut bytes);
            read.map_err(|error| broken(&error))?;
            match bytes.len() <= max_bytes {
                true => Ok(bytes),
                false => Err(FetchError::Refused {
                    reason: format!("{}: {name} has more than {max_bytes} bytes", self.url),
                }),
            }
        })
    }

    /// Reads the bytes `range` of the file `name`, which must have `whole_bytes` in total, without decompression.
    ///
    /// # Errors
    /// As [`open`](Self::open). [`FetchError::Refused`] if the cache does not support range requests for the file.
    pub fn read_range(
        &self,
        http: &Http,
        name: &str,
        range: &Range<u64>,
        whole_bytes: u64,
        retries: Retries,
    ) -> Result<Vec<u8>, FetchError> {
        retry::retry(retries, || {
            let reader = match self.locate(name) {
                At::File(path) => part_of_file(&path, range, whole_bytes)?,
                At::Url { url, shown } => http.get_range(&url, &shown, range, whole_bytes)?,
            };
            let (len_bytes, mut bytes) = (range.end - range.start, Vec::new());
            let read = reader.take(len_bytes + 1).read_to_end(&mut bytes);
            read.map_err(|error| broken(&error))?;
            match bytes.len() as u64 == len_bytes {
                true => Ok(bytes),
                false => Err(FetchError::Refused {
                    reason: format!("{}: a range of {name} has the wrong length", self.url),
                }),
            }
        })
    }

    fn open_once(&self, http: &Http, name: &str) -> Result<Body, FetchError> {
        match self.locate(name) {
            At::File(path) => Ok(Body {
                reader: Box::new(open_file(&path)?),
            }),
            At::Url { url, shown } => http.get(&url, &shown),
        }
    }

    fn locate(&self, name: &str) -> At {
        let url = |url: String| At::Url {
            shown: url.clone(),
            url,
        };
        if name.starts_with("http://") || name.starts_with("https://") {
            return url(name.to_owned());
        }
        match &self.place {
            CacheLocation::Directory(dir) => At::File(dir.join(name.trim_start_matches('/'))),
            CacheLocation::Http(base) => url(format!("{base}/{name}")),
            CacheLocation::S3(s3) => {
                let request = s3.bucket.get_object(s3.credentials.as_ref(), name);
                At::Url {
                    url: request.sign(SIGNED_FOR).to_string(),
                    // The signature must not appear in logs.
                    shown: format!("{}/{name}", self.url),
                }
            }
        }
    }
}

/// The location of a file of a cache.
enum At {
    File(PathBuf),
    /// `shown` replaces the URL in messages.
    Url {
        url: String,
        shown: String,
    },
}

/// Converts an error of reading a body.
fn broken(error: &io::Error) -> FetchError {
    let reason = error.to_string();
    match may_pass(error) {
        true => FetchError::Passing { reason },
        false => FetchError::Refused { reason },
    }
}

/// Returns whether a failed read of a body may succeed on a retry: the connection broke. Malformed data stays malformed.
pub fn may_pass(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
    )
}

/// How often a temporary failure is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries(pub u32);

/// Opens a file of a `file://` cache. Detects the compression of listings, which a server would name in a header.
fn open_file(path: &Path) -> Result<File, FetchError> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => FetchError::NotFound,
        _ => FetchError::Refused {
            reason: format!("{}: {error}", path.display()),
        },
    })
}

fn part_of_file(
    path: &Path,
    range: &Range<u64>,
    whole_bytes: u64,
) -> Result<Box<dyn Read + Send>, FetchError> {
    let mut file = open_file(path)?;
    let refused = |reason: String| FetchError::Refused {
        reason: format!("{}: {reason}", path.display()),
    };
    let metadata = file
        .metadata()
        .map_err(|error| refused(error.to_string()))?;
    if metadata.len() != whole_bytes {
        let found = metadata.len();
        return Err(refused(format!("it has {found} bytes, not {whole_bytes}")));
    }
    let sought = file.seek(SeekFrom::Start(range.start));
    sought.map_err(|error| refused(error.to_string()))?;
    Ok(Box::new(file.take(range.end - range.start)))
}

impl Body {
    fn encoded(
        reader: impl Read + Send + 'static,
        encoding: Option<&str>,
    ) -> Result<Self, FetchError> {
        let encoding = encoding.unwrap_or_default();
        let refused = |reason| FetchError::Refused { reason };
        let compression = Compression::from_content_encoding(encoding)
            .ok_or_else(|| refused(format!("unknown Content-Encoding \"{encoding}\"")))?;
        let reader = decompress(compression, reader).map_err(|error| refused(error.to_string()))?;
        Ok(Self { reader })
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

/// Parses the name and query of an S3 cache. The parameters are those of Nix's `s3://` stores: `endpoint`, `region`, `scheme`.
fn s3(name: &str, query: &str, credentials: Option<Credentials>) -> Result<S3, &'static str> {
    let parameters = query.split('&').filter_map(|pair| pair.split_once('='));
    let parameter = |name: &str| {
        let found = parameters.clone().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.to_owned())
    };
    let region = parameter("region").unwrap_or_else(|| "us-east-1".to_owned());
    let scheme = parameter("scheme").unwrap_or_else(|| "https".to_owned());
    let (endpoint, style) = match parameter("endpoint") {
        Some(endpoint) if endpoint.contains("://") => (endpoint, UrlStyle::Path),
        Some(endpoint) => (format!("{scheme}://{endpoint}"), UrlStyle::Path),
        None => (
            format!("{scheme}://s3.{region}.amazonaws.com"),
            UrlStyle::VirtualHost,
        ),
    };
    let endpoint = endpoint
        .parse()
        .map_err(|_| "its endpoint is not a host or a URL")?;
    let bucket = Bucket::new(endpoint, style, name.trim_matches('/').to_owned(), region);
    Ok(S3 {
        bucket: bucket.map_err(|_| "its endpoint or bucket cannot be used")?,
        credentials,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<BinaryCache, String> {
        BinaryCache::parse(url, None).map_err(|error| error.to_string())
    }

    #[test]
    fn places_of_caches() {
        for url in [
            "file:///srv/cache",
            "file:///srv/cache?compression=zstd",
            "http://localhost:8080/",
            "https://cache.example/prefix/?priority=3",
            "s3://bucket",
            "s3://bucket?endpoint=localhost:9000&scheme=http&region=eu-west-1",
        ] {
            assert_eq!(parse(url).unwrap().url(), url);
        }
    }

    #[test]
    fn invalid_urls_are_refused() {
        for (url, part) in [
            ("cache.example", "no ://"),
            ("file://relative", "absolute"),
            ("https://", "no host"),
            ("ssh://host", "only file://"),
            ("s3://bucket?endpoint=:::", "endpoint"),
        ] {
            let message = parse(url).unwrap_err();
            assert!(message.contains(part) && message.contains(url), "{message}");
        }
    }
}
