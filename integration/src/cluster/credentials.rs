//! What the API server proves itself with, and whom it believes.
//!
//! In: the server's addresses. Out: files in a directory: a certificate authority, the server's certificate, the key of
//! service accounts, static tokens, kubeconfigs. What always holds: every key is made for this directory and goes with it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ClusterError, failed};

/// Whom the server knows by a token: the user's name and groups.
const USERS: [(&str, &str); 3] = [(ADMIN, "system:masters"), (FLATFELL, "daemons"), (NOBODY, "nobodies")];
/// May do anything.
pub const ADMIN: &str = "admin";
/// May list and watch what the daemon watches, and nothing else.
pub const FLATFELL: &str = "flatfell";
/// Is known, and may do nothing.
pub const NOBODY: &str = "nobody";

/// The files of one control plane.
#[derive(Debug)]
pub struct Credentials {
    directory: PathBuf,
}

impl Credentials {
    /// Makes all keys, certificates and tokens for a server at these addresses.
    pub fn make(directory: &Path, addresses: &[IpAddr]) -> Result<Self, ClusterError> {
        let this = Self { directory: directory.to_owned() };
        let names = addresses.iter().map(|address| format!("IP:{address}")).collect::<Vec<_>>().join(",");
        let names =
            format!("subjectAltName=IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc,{names}");
        let new_key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let authority = ["-subj", "/CN=lab", "-keyout", "ca.key", "-out", "ca.crt"];
        this.openssl(&[&new_key[..], &authority].concat())?;
        let server = ["-subj", "/CN=kube-apiserver", "-keyout", "server.key", "-out", "server.crt", "-addext", &names];
        let signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"];
        this.openssl(&[&new_key[..], &server, &signed].concat())?;
        this.openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "accounts.key"])?;
        let tokens = USERS.map(|(user, group)| format!("{},{user},{user},{group}\n", token(user)));
        fs::write(this.file("tokens.csv"), tokens.concat()).map_err(failed("the tokens"))?;
        Ok(this)
    }

    /// One of the files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A kubeconfig for a server's URL with this token.
    pub fn kubeconfig(&self, file: &str, server: &str, token: &str) -> Result<PathBuf, ClusterError> {
        let text = format!(
            "apiVersion: v1
kind: Config
current-context: lab
clusters:
- name: lab
  cluster: {{server: \"{server}\", certificate-authority: {authority}}}
users:
- name: lab
  user: {{token: {token}}}
contexts:
- name: lab
  context: {{cluster: lab, user: lab}}
",
            authority = self.file("ca.crt").display(),
        );
        let path = self.file(file);
        fs::write(&path, text).map_err(failed("a kubeconfig"))?;
        Ok(path)
    }

    fn openssl(&self, arguments: &[&str]) -> Result<(), ClusterError> {
        let output = Command::new("openssl").args(arguments).current_dir(&self.directory).output();
        let output = output.map_err(failed("openssl"))?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(ClusterError::Refused { what: format!("openssl {}", arguments.join(" ")), message })
    }
}

/// The static token of a user.
pub fn token(user: &str) -> String {
    format!("{user}-of-the-lab")
}
