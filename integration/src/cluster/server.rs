//! etcd and the API server, as one thing that starts, dies and comes back.
//!
//! In: a namespace to run in and the addresses it has there. Out: kubeconfigs and an [`Api`]. What always holds: the data
//! outlive a kill of the server; RBAC and PodSecurity are in force; nothing listens outside the namespace.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::api::Api;
use super::credentials::{ADMIN, Credentials, FLATFELL, token};
use super::objects;
use super::parts::{self, Process};
use super::{ClusterError, failed};
use crate::netns::Netns;

/// How long a server may take, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(120);
/// The API server's port; one beside it has the next.
const PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";

/// Which etcd the API server stands on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Etcd {
    /// One that lets the API server stream lists.
    #[default]
    Current,
    /// 3.4: the API server refuses streaming lists.
    Old,
}

/// What servers on one etcd share.
#[derive(Debug)]
struct Plane {
    // Before the directory: it writes there.
    _etcd: Process,
    space: Netns,
    credentials: Credentials,
    addresses: Vec<IpAddr>,
    directory: TempDir,
}

/// An API server.
#[derive(Debug)]
pub struct ApiServer {
    server: Option<Process>,
    _proxy: Process,
    api: Api,
    port: u16,
    plane: Arc<Plane>,
}

impl ApiServer {
    /// Starts etcd and the server in a namespace with these addresses, and waits until it is ready.
    pub fn start(space: &Netns, addresses: &[IpAddr], etcd: Etcd) -> Result<Self, ClusterError> {
        let directory = TempDir::new().map_err(failed("a directory for the API server"))?;
        let credentials = Credentials::make(directory.path(), addresses)?;
        let etcd = start_etcd(space, etcd, directory.path())?;
        let plane = Plane { _etcd: etcd, space: space.again()?, credentials, addresses: addresses.to_vec(), directory };
        let this = Self::on(Arc::new(plane), PORT)?;
        for object in objects::permissions(FLATFELL) {
            this.api.put(&object)?;
        }
        Ok(this)
    }

    /// Starts another server on the same etcd.
    pub fn beside(&self) -> Result<Self, ClusterError> {
        Self::on(Arc::clone(&self.plane), self.port + 1)
    }

    fn on(plane: Arc<Plane>, port: u16) -> Result<Self, ClusterError> {
        let url = format!("https://127.0.0.1:{port}");
        let file = plane.credentials.kubeconfig(&format!("local-{port}"), &url, &token(ADMIN))?;
        let api = Api::new(plane.directory.path().join(format!("proxy-{port}")));
        let arguments = [
            "proxy".to_owned(),
            format!("--kubeconfig={}", file.display()),
            format!("--unix-socket={}", api.socket().display()),
        ];
        let log = plane.directory.path().join("proxy.log");
        let proxy = Process::start(&plane.space, "kubectl", &arguments, &home(&plane), &log)?;
        let mut this = Self { server: None, _proxy: proxy, api, port, plane };
        this.restart()?;
        Ok(this)
    }

    /// Starts it again, if it does not run, and waits until it is ready.
    pub fn restart(&mut self) -> Result<(), ClusterError> {
        self.rise()?;
        let Some(server) = &mut self.server else { return Ok(()) };
        server.wait("ready", PATIENCE, || self.api.ready())
    }

    /// Starts it again, if it does not run.
    pub fn rise(&mut self) -> Result<(), ClusterError> {
        if self.server.is_none() {
            let log = self.plane.directory.path().join(format!("server-{}.log", self.port));
            let arguments = self.plane.arguments(self.port);
            self.server = Some(Process::start(&self.plane.space, "kube-apiserver", &arguments, &[], &log)?);
        }
        Ok(())
    }

    /// Kills the server; etcd stays.
    pub fn kill9(&mut self) -> Result<(), ClusterError> {
        self.server.take().map_or(Ok(()), Process::kill9)
    }

    /// Its process id, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.server.as_ref().map(Process::id)
    }

    /// What it said.
    pub fn log(&self) -> String {
        self.server.as_ref().map(Process::log).unwrap_or_default()
    }

    /// The way to its objects.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Its URL as nodes reach it.
    pub fn url(&self) -> String {
        let host = self.plane.addresses.first().map(|address| match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        });
        format!("https://{}:{}", host.unwrap_or_default(), self.port)
    }

    /// A kubeconfig for nodes, as a user with a static token.
    pub fn kubeconfig(&self, user: &str) -> Result<PathBuf, ClusterError> {
        self.kubeconfig_with(user, &token(user))
    }

    /// A kubeconfig for nodes with any token.
    pub fn kubeconfig_with(&self, name: &str, token: &str) -> Result<PathBuf, ClusterError> {
        self.plane.credentials.kubeconfig(&format!("{name}-{}.kubeconfig", self.port), &self.url(), token)
    }

    /// Runs kubectl as the administrator on this input and gives what it printed.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, ClusterError> {
        let file = self.kubeconfig(ADMIN)?;
        let mut all = vec!["--kubeconfig", file.to_str().unwrap_or_default()];
        all.extend(arguments);
        Ok(self.plane.space.feed(&parts::path("kubectl")?.to_string_lossy(), &all, input)?)
    }
}

impl Plane {
    fn arguments(&self, port: u16) -> Vec<String> {
        let file = |name: &str| self.credentials.file(name).display().to_string();
        let advertised = self.addresses.first().map(ToString::to_string).unwrap_or_default();
        let (first, second) = ("10.96.0.0/16", "fd00:10:96::/112");
        let mut ranges = [first, second];
        // The first range's family must be the advertised address's.
        if advertised.contains(':') {
            ranges.reverse();
        }
        vec![
            format!("--etcd-servers={ETCD}"),
            format!("--secure-port={port}"),
            format!("--advertise-address={advertised}"),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-account-key-file={}", file("accounts.key")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-cluster-ip-range={}", ranges.join(",")),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--enable-admission-plugins=PodSecurity".to_owned(),
            // No controller makes the default accounts of namespaces.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--profiling=false".to_owned(),
        ]
    }
}

/// kubectl keeps a cache under the home of who runs it; here it has one that goes with the lab.
fn home(plane: &Plane) -> [(&'static str, String); 1] {
    [("HOME", plane.directory.path().display().to_string())]
}

fn start_etcd(space: &Netns, etcd: Etcd, directory: &Path) -> Result<Process, ClusterError> {
    // A namespace that no lab has brought to life has no loopback yet.
    space.feed("ip", &["link", "set", "lo", "up"], "")?;
    let mut arguments = vec![
        format!("--data-dir={}", directory.join("etcd").display()),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
    ];
    let part = match etcd {
        Etcd::Current => {
            // Nothing here outlives the machine.
            arguments.push("--unsafe-no-fsync".to_owned());
            "etcd"
        }
        Etcd::Old => "etcd-3.4",
    };
    let mut process = Process::start(space, part, &arguments, &[], &directory.join("etcd.log"))?;
    process.wait("listening", PATIENCE, || space.run(listens).unwrap_or(false))?;
    Ok(process)
}

fn listens() -> bool {
    std::net::TcpStream::connect("127.0.0.1:2379").is_ok()
}
