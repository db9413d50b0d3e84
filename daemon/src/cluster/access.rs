//! How the API server is reached.
//!
//! In: flags. Out: [`Access`], which makes a client as often as one is needed. What always holds: what cannot heal (a
//! kubeconfig that is missing or not understood) is found at start; credentials are read again with each new client, a
//! token's file each minute too; no program is started to get credentials.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use super::failure::chain;

/// A connection must stand within this time, TLS included. Short, because a server that comes back is to be found within
/// two seconds.
const CONNECT: Duration = Duration::from_secs(3);

/// A name that the certificate of every API server carries.
const SERVICE_NAME: &str = "kubernetes.default.svc";

/// Why there is no way to the API server that could become one.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The file cannot be read or used.
    #[error("--kubeconfig {path} cannot be used", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KubeconfigError,
    },
    /// Credentials that only a program has.
    #[error(
        "--kubeconfig {path}: its user gets credentials from a program (exec or auth-provider), and none is started here: \
         use a token, a tokenFile or a client certificate",
        path = path.display()
    )]
    Program {
        /// The file.
        path: PathBuf,
    },
    /// No flag, and no pod either.
    #[error(
        "nothing says where policy comes from: give --manifests DIR or --kubeconfig FILE, or run in a pod with a service \
         account ({0})"
    )]
    NoSource(#[source] Box<InClusterError>),
    /// The certificates or keys cannot be used.
    #[error("the client cannot be made: {0}")]
    Client(String),
}

/// The way to the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A file in place of the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the file that is not the current one.
    pub context: Option<String>,
    /// The server's address, in place of the one that the file or the pod knows.
    pub api_server: Option<Uri>,
}

impl Access {
    /// A client with credentials as they are now, and the server's address.
    pub async fn client(&self) -> Result<(Client, String), AccessError> {
        let config = self.config().await?;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| AccessError::Client(chain(&error)))?;
        Ok((client, server.trim_end_matches('/').to_owned()))
    }

    async fn config(&self) -> Result<Config, AccessError> {
        let mut config = match &self.kubeconfig {
            Some(path) => self.file_config(path).await?,
            None => self.pod_config()?,
        };
        if let Some(address) = &self.api_server {
            if config.tls_server_name.is_none() && is_address(address) {
                config.tls_server_name = Some(SERVICE_NAME.to_owned());
            }
            config.cluster_url = address.clone();
        }
        config.connect_timeout = Some(CONNECT);
        // Failures are seen, counted and waited for in one place.
        config.default_retry = false;
        Ok(config)
    }

    async fn file_config(&self, path: &PathBuf) -> Result<Config, AccessError> {
        let failed = |source| AccessError::Kubeconfig { path: path.clone(), source };
        let file = Kubeconfig::read_from(path).map_err(failed)?;
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(file, &options).await.map_err(failed)?;
        if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
            return Err(AccessError::Program { path: path.clone() });
        }
        Ok(config)
    }

    fn pod_config(&self) -> Result<Config, AccessError> {
        // With an address of its own the pod needs no Service variables.
        let config = if self.api_server.is_some() { Config::incluster_dns() } else { Config::incluster_env() };
        config.map_err(|error| AccessError::NoSource(Box::new(error)))
    }
}

/// Whether an address is a number: certificates rarely carry those of every server.
fn is_address(uri: &Uri) -> bool {
    uri.host().is_some_and(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok())
}
