//! Objects written to the API server and read back.
//!
//! In: objects as JSON. Out: the server's answer. What always holds: the same call makes and changes an object (by
//! server-side apply); a refusal is an error with the server's own words.
//!
//! Requests go through a `kubectl proxy` on a unix socket: the test needs no TLS and no way into a namespace.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::{ClusterError, failed};

/// Longer than any answer takes on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(30);

/// The kinds that tests write, by the path of their collection.
const KINDS: [(&str, &str, &str); 9] = [
    ("Namespace", "api/v1", "namespaces"),
    ("Node", "api/v1", "nodes"),
    ("Pod", "api/v1", "pods"),
    ("Service", "api/v1", "services"),
    ("ServiceAccount", "api/v1", "serviceaccounts"),
    ("EndpointSlice", "apis/discovery.k8s.io/v1", "endpointslices"),
    ("NetworkPolicy", "apis/networking.k8s.io/v1", "networkpolicies"),
    ("ClusterRole", "apis/rbac.authorization.k8s.io/v1", "clusterroles"),
    ("ClusterRoleBinding", "apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
];

/// A way to the API server as its administrator.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
}

impl Api {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Where the proxy listens.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes an object or changes it to this, status included.
    pub fn put(&self, object: &Value) -> Result<Value, ClusterError> {
        let path = path_of(object)?;
        let mut without_status = object.clone();
        let status = without_status.as_object_mut().and_then(|object| object.remove("status"));
        let written = self.apply(&path, &without_status)?;
        match status {
            // No apply: addresses of a node are a list whose key is not unique.
            Some(status) => self.merge(&format!("{path}/status"), &json!({"status": status})),
            None => Ok(written),
        }
    }

    /// Changes parts of an object by a merge patch.
    pub fn patch(&self, object: &Value, patch: &Value) -> Result<Value, ClusterError> {
        self.merge(&path_of(object)?, patch)
    }

    /// Deletes an object at once, without a kubelet's consent.
    pub fn delete(&self, object: &Value) -> Result<(), ClusterError> {
        self.call("DELETE", &format!("{}?gracePeriodSeconds=0", path_of(object)?), JSON, None).map(|_| ())
    }

    /// What the server answers at a path.
    pub fn get(&self, path: &str) -> Result<Value, ClusterError> {
        self.call("GET", path, JSON, None)
    }

    /// Whether the server is there and says that it is ready.
    pub fn ready(&self) -> bool {
        self.exchange("GET", "/readyz", JSON, "").is_ok_and(|(code, _)| code == 200)
    }

    fn merge(&self, path: &str, patch: &Value) -> Result<Value, ClusterError> {
        self.call("PATCH", path, "application/merge-patch+json", Some(patch))
    }

    fn apply(&self, path: &str, object: &Value) -> Result<Value, ClusterError> {
        let path = format!("{path}?fieldManager=lab&force=true");
        self.call("PATCH", &path, "application/apply-patch+yaml", Some(object))
    }

    fn call(&self, method: &str, path: &str, content: &str, body: Option<&Value>) -> Result<Value, ClusterError> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let (code, answer) = self.exchange(method, path, content, &body).map_err(failed(format!("{method} {path}")))?;
        if (200..300).contains(&code) {
            return Ok(serde_json::from_str(&answer).unwrap_or(Value::String(answer)));
        }
        Err(ClusterError::Refused { what: format!("{method} {path} {body}"), message: answer })
    }

    fn exchange(&self, method: &str, path: &str, content: &str, body: &str) -> io::Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // HTTP/1.0: the answer ends with the connection and is never chunked.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {content}\r\nAccept: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        Ok((code, body.to_owned()))
    }
}

const JSON: &str = "application/json";

fn path_of(object: &Value) -> Result<String, ClusterError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&object["kind"]);
    let found = KINDS.iter().find(|(name, ..)| *name == kind);
    let (_, group, collection) = found.ok_or(ClusterError::Kind(kind))?;
    let name = text(&object["metadata"]["name"]);
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Ok(format!("/{group}/namespaces/{namespace}/{collection}/{name}")),
        None => Ok(format!("/{group}/{collection}/{name}")),
    }
}
