//! Reads the settings of nix.conf(5) for binary caches.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::cache::{Login, netrc};

/// Maximum depth of includes.
const INCLUDES_MAX: usize = 10;

/// Nix's default substituter.
const DEFAULT_SUBSTITUTER: &str = "https://cache.nixos.org/";

/// Settings of the host's and the user's nix.conf, and of `NIX_CONFIG`.
#[derive(Debug, Default)]
pub struct NixConf {
    settings: HashMap<String, String>,
}

impl NixConf {
    /// Reads all files that exist. Files that cannot be read are ignored.
    pub fn read() -> Self {
        let mut conf = Self::default();
        let dir = env::var_os("NIX_CONF_DIR").map_or_else(|| "/etc/nix".into(), PathBuf::from);
        conf.read_file(&dir.join("nix.conf"), INCLUDES_MAX);
        let user = env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".config")));
        if let Some(user) = user {
            conf.read_file(&user.join("nix/nix.conf"), INCLUDES_MAX);
        }
        if let Ok(text) = env::var("NIX_CONFIG") {
            conf.read_text(&text, Path::new("/"), 0);
        }
        conf
    }

    fn read_file(&mut self, file: &Path, includes: usize) {
        if let Ok(text) = fs::read_to_string(file) {
            let dir = file.parent().unwrap_or(Path::new("/"));
            self.read_text(&text, dir, includes);
        }
    }

    fn read_text(&mut self, text: &str, dir: &Path, includes: usize) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some((key, value)) = line.split_once('=') {
                self.set(key.trim(), value.trim());
            } else if let Some((word, file)) = line.split_once(' ')
                && matches!(word, "include" | "!include")
                && includes > 0
            {
                self.read_file(&dir.join(file.trim()), includes - 1);
            }
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        match key.strip_prefix("extra-") {
            Some(key) => {
                let all = self.settings.entry(key.to_owned()).or_default();
                *all = format!("{all} {value}").trim().to_owned();
            }
            None => _ = self.settings.insert(key.to_owned(), value.to_owned()),
        }
    }

    fn get(&self, key: &str) -> Option<&str> {
        let value = self.settings.get(key)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// Returns the URLs of binary caches, in order of preference.
    pub fn substituters(&self) -> Vec<String> {
        let urls = self.get("substituters").unwrap_or(DEFAULT_SUBSTITUTER);
        urls.split_ascii_whitespace().map(str::to_owned).collect()
    }

    /// Returns the trusted keys, if configured.
    pub fn trusted_public_keys(&self) -> Option<String> {
        self.get("trusted-public-keys").map(str::to_owned)
    }

    /// Returns the file with CA certificates, if configured or set in the environment.
    pub fn certificates(&self) -> Option<PathBuf> {
        let variable = env::var_os("NIX_SSL_CERT_FILE").map(PathBuf::from);
        variable.or_else(|| self.get("ssl-cert-file").map(PathBuf::from))
    }

    /// Returns the logins in its netrc file.
    pub fn logins(&self) -> Vec<Login> {
        let file = self.get("netrc-file").unwrap_or("/etc/nix/netrc");
        netrc(&fs::read_to_string(file).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_settings_win_and_extra_settings_append() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("more.conf"),
            "extra-substituters = http://c\n",
        )
        .unwrap();
        let mut conf = NixConf::default();
        assert_eq!(conf.substituters(), ["https://cache.nixos.org/"]);
        assert_eq!(conf.trusted_public_keys(), None);
        let text = "# of the host\nsubstituters = http://a # not b\nsubstituters=http://b\n\
                    !include more.conf\n!include absent.conf\ntrusted-public-keys = k:1 l:2\nbroken line\n";
        conf.read_text(text, dir.path(), 1);
        assert_eq!(conf.substituters(), ["http://b", "http://c"]);
        assert_eq!(conf.trusted_public_keys().as_deref(), Some("k:1 l:2"));
    }

    #[test]
    fn a_file_may_include_itself() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nix.conf");
        fs::write(&file, "include nix.conf\nextra-substituters = x\n").unwrap();
        let mut conf = NixConf::default();
        conf.read_file(&file, 3);
        assert_eq!(conf.substituters(), ["x"; 4]);
    }
}
