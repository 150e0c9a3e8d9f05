//! Credentials from netrc and the environment.

use rusty_s3::Credentials;

use super::Login;
use crate::closure::to_base64;

/// Returns the logins of a netrc file: `machine HOST login NAME password WORD`, and `default` for all hosts.
pub fn netrc(text: &str) -> Vec<Login> {
    let mut logins = Vec::new();
    let mut words = text.split_ascii_whitespace();
    let mut entry: Option<LoginEntry> = None;
    while let Some(word) = words.next() {
        let next = match word {
            "machine" => Some(words.next().map(str::to_owned)),
            "default" => Some(None),
            _ => None,
        };
        if let Some(host) = next {
            logins.extend(entry.take().map(LoginEntry::login));
            entry = Some(LoginEntry {
                host,
                ..LoginEntry::default()
            });
            continue;
        }
        let Some(entry) = &mut entry else { continue };
        match word {
            "login" => entry.name = words.next().unwrap_or_default().to_owned(),
            "password" => entry.password = words.next().unwrap_or_default().to_owned(),
            _ => {}
        }
    }
    logins.extend(entry.map(LoginEntry::login));
    logins
}

#[derive(Default)]
struct LoginEntry {
    host: Option<String>,
    name: String,
    password: String,
}

impl LoginEntry {
    /// Encodes it for HTTP basic authentication (RFC 7617).
    fn login(self) -> Login {
        let text = format!("{}:{}", self.name, self.password);
        Login {
            host: self.host,
            authorization: format!("Basic {}", to_base64(text.as_bytes())),
        }
    }
}

/// Returns the S3 credentials of the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.
pub fn s3_credentials() -> Option<Credentials> {
    Credentials::from_env()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netrc_has_machines_and_a_default() {
        let logins = netrc(
            "machine cache.example\n  login me\n password s3cret\nmachine other login a\ndefault login b password c",
        );
        let expected = [
            (Some("cache.example"), "bWU6czNjcmV0"),
            (Some("other"), "YTo="),
            (None, "Yjpj"),
        ];
        let expected = expected.map(|(host, text)| Login {
            host: host.map(str::to_owned),
            authorization: format!("Basic {text}"),
        });
        assert_eq!(logins, expected);
        assert_eq!(netrc(""), []);
        assert_eq!(netrc("machine"), [LoginEntry::default().login()]);
    }
}
