//! Certificates, made by openssl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::tool;

/// Certificates of an authority, and of a server and a client signed by it. The file names are those of QEMU, libnbd and
/// nbdkit.
pub struct Pki {
    dir: TempDir,
}

impl Pki {
    pub fn new() -> Self {
        let pki = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(pki.dir()).unwrap();
        let own = [
            "-subj",
            "/CN=authority",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ];
        pki.openssl(
            &[
                &["req", "-x509", "-new"],
                &KEY[..],
                &["-keyout", "ca-key.pem", "-out", "ca-cert.pem"],
                &own,
            ]
            .concat(),
        );
        pki.sign(
            "server",
            "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\nextendedKeyUsage=serverAuth\n",
        );
        pki.sign("client", "extendedKeyUsage=clientAuth\n");
        pki
    }

    /// The directory with all files.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("pki")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Another directory, with some of the files.
    pub fn part(&self, names: &[&str]) -> TempDir {
        let part = tempfile::tempdir().unwrap();
        for name in names {
            fs::copy(self.path(name), part.path().join(name)).unwrap();
        }
        part
    }

    /// Creates a key, and a certificate for it signed by the authority.
    fn sign(&self, name: &str, extensions: &str) {
        let [key, request, cert, ext] =
            ["-key.pem", ".csr", "-cert.pem", ".ext"].map(|end| format!("{name}{end}"));
        fs::write(
            self.path(&ext),
            format!("basicConstraints=CA:FALSE\n{extensions}"),
        )
        .unwrap();
        let subject = format!("/CN={name}");
        self.openssl(
            &[
                &["req", "-new"],
                &KEY[..],
                &["-keyout", &key, "-out", &request, "-subj", &subject],
            ]
            .concat(),
        );
        let signed = [
            "x509",
            "-req",
            "-CA",
            "ca-cert.pem",
            "-CAkey",
            "ca-key.pem",
            "-CAcreateserial",
            "-days",
            "2",
        ];
        self.openssl(
            &[
                &signed[..],
                &["-in", &request, "-out", &cert, "-extfile", &ext],
            ]
            .concat(),
        );
    }

    /// Revokes the client's certificate.
    pub fn revoke_client(&self) {
        let config = "[ca]\ndefault_ca=own\n[own]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\ndefault_crl_days=2\n";
        fs::write(self.path("config"), config).unwrap();
        fs::write(self.path("index"), "").unwrap();
        fs::write(self.path("number"), "01\n").unwrap();
        let ca = [
            "ca",
            "-config",
            "config",
            "-cert",
            "ca-cert.pem",
            "-keyfile",
            "ca-key.pem",
        ];
        self.openssl(&[&ca[..], &["-revoke", "client-cert.pem"]].concat());
        self.openssl(&[&ca[..], &["-gencrl", "-out", "ca-crl.pem"]].concat());
    }

    fn openssl(&self, arguments: &[&str]) {
        let mut command = Command::new(tool("openssl", "openssl"));
        let output = command
            .args(arguments)
            .current_dir(self.dir())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Arguments that create a key of a kind that is generated quickly.
const KEY: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
];

/// Writes a key with a password to `to`.
pub fn lock_key(from: &Path, to: &Path) {
    let mut command = Command::new(tool("openssl", "openssl"));
    command
        .args(["pkcs8", "-topk8", "-passout", "pass:secret", "-in"])
        .arg(from);
    assert!(
        command
            .arg("-out")
            .arg(to)
            .output()
            .unwrap()
            .status
            .success()
    );
}
