//! What the daemon is told: flags, each with an environment variable.
//!
//! In: arguments and environment. Out: [`Cli`], complete and valid. What always holds: a wrong value ends the program
//! with exit code 2 and a message that names the flag, before anything is touched.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use flatfell_rules::mark::ID_MAX;
use hyper::Uri;
use tracing_subscriber::EnvFilter;

use crate::cluster::Access;
use crate::engine::EngineConfig;
use crate::totals;

mod cni;
mod flows;
mod ranges;
mod spoofing;

pub use cni::{CniArgs, CniRunArgs, CniUnavailable};
pub use flows::{FlowLogArgs, FlowOutput, FlowRuleArgs, FlowsArgs, FlowsOutput};
pub use ranges::{RangeArgs, UnknownPods};
pub use spoofing::{SpoofingArgs, SpoofingMode};

/// Where the daemon serves and `flatfell status` asks, unless told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:9469";

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, or `check` found errors; 2 wrong usage.";

/// NetworkPolicy for Flannel clusters, enforced and counted by nftables.
#[derive(Debug, Parser)]
#[command(name = "flatfell", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// How to log.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Text for people or one JSON object a line
    #[arg(long, global = true, env = "FLATFELL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// error, warn, info, debug or trace; also by module, as `info,flatfell::manifests=debug`
    #[arg(long, global = true, env = "FLATFELL_LOG_LEVEL", default_value = "info", value_parser = log_level)]
    pub log_level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enforce on this node what the API server (or a directory of manifests) says, and follow its changes
    Run(Box<RunArgs>),
    /// Print the ruleset that a directory gives for a node; touches nothing
    Render(RenderArgs),
    /// Say what is wrong with a directory of manifests, with file and line
    Check(CheckArgs),
    /// Show pods, isolation, rules and their counters from the running daemon
    Status(StatusArgs),
    /// Show packets that were denied, or would have been, from the running daemon
    Flows(FlowsArgs),
    /// Let the running daemon enforce nothing for a while: break-glass, for this node alone
    Pause(PauseArgs),
    /// End a pause: policy is enforced again
    Resume(ControlArgs),
    /// Take away what Flatfell put into this network namespace (refused while a daemon runs)
    Cleanup(CleanupArgs),
}

/// `flatfell run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// A directory of manifests to follow, in place of the API server
    #[arg(long, value_name = "DIR", env = "FLATFELL_MANIFESTS")]
    pub manifests: Option<PathBuf>,
    /// How to reach the API server.
    #[command(flatten)]
    pub api: ApiArgs,
    /// This node's name: pods with this spec.nodeName are enforced here
    #[arg(long, value_name = "NAME", env = "FLATFELL_NODE", value_parser = node_name)]
    pub node: String,
    /// Where /metrics, /healthz, /readyz and /status are served
    #[arg(long, value_name = "ADDRESS:PORT", env = "FLATFELL_LISTEN", default_value = DEFAULT_LISTEN, value_parser = listen)]
    pub listen: SocketAddr,
    /// Whether pods are held to their egress rules towards their own node
    #[arg(long, env = "FLATFELL_OWN_NODE_EGRESS", value_enum, default_value_t = OwnNodeEgress::Enforce)]
    pub own_node_egress: OwnNodeEgress,
    /// What happens to running connections that a change of policy forbids
    #[arg(long, env = "FLATFELL_ESTABLISHED", value_enum, default_value_t = Established::Cut)]
    pub established: Established,
    /// What happens to policies deleted from a namespace that is Terminating, while pods live there
    #[arg(long, env = "FLATFELL_TERMINATING", value_enum, default_value_t = Terminating::Keep)]
    pub terminating: Terminating,
    /// A bridge that carries pods; repeat the flag (or use commas) for several
    #[arg(long = "pod-bridge", value_name = "NAME", env = "FLATFELL_POD_BRIDGES", value_delimiter = ',', value_parser = bridge)]
    pub pod_bridges: Vec<String>,
    /// Addresses that are no known pod's.
    #[command(flatten)]
    pub ranges: RangeArgs,
    /// Frames that pods send as somebody else.
    #[command(flatten)]
    pub spoofing: SpoofingArgs,
    /// Series of single rules and pods in /metrics at most; those over it are left out and counted
    #[arg(long, value_name = "NUMBER", env = "FLATFELL_METRICS_SERIES_MAX", default_value_t = crate::metrics::SERIES_MAX)]
    pub metrics_series_max: usize,
    /// How long the counters of a rule or pod that is gone are kept, and exported: as 90s, 15m or 1h
    #[arg(long, value_name = "LENGTH", env = "FLATFELL_COUNTER_GRACE", default_value = "15m", value_parser = crate::pause::length)]
    pub counter_grace: Duration,
    /// Rules and pods that have counters of their own, in each direction; the others count as not attributed. With 0 no connection is counted
    #[arg(long, value_name = "NUMBER", env = "FLATFELL_RULE_IDS", default_value_t = ID_MAX, value_parser = clap::value_parser!(u16).range(0..=i64::from(ID_MAX)))]
    pub rule_ids: u16,
    /// Whether others may change the daemon's tables while it runs, where the kernel can prevent it (Linux 6.9); put right they are anyway
    #[arg(long, env = "FLATFELL_TABLES", value_enum, default_value_t = Tables::Locked)]
    pub tables: Tables,
    /// The flow log.
    #[command(flatten)]
    pub flows: FlowLogArgs,
    /// The CNI plugin.
    #[command(flatten)]
    pub cni: CniRunArgs,
    /// The control socket.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl RunArgs {
    /// The engine's part.
    pub fn engine(&self) -> EngineConfig {
        EngineConfig {
            flow_log: self.flows.kernel.flow_log(),
            own_node_egress: self.own_node_egress == OwnNodeEgress::Enforce,
            cut_established: self.established == Established::Cut,
            pod_bridges: self.pod_bridges.clone(),
            close_unknown: self.ranges.unknown_pods == UnknownPods::Drop,
            pod_cidrs: self.ranges.pod_cidrs.clone(),
            anti_spoofing: self.spoofing.config(),
            counter_grace: self.counter_grace,
            rule_ids: self.rule_ids,
            lock_tables: self.tables == Tables::Locked,
            carried: Some(self.control.run_dir.join(totals::FILE)),
        }
    }
}

/// Who may change the daemon's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tables {
    /// The daemon, as long as it runs.
    Locked,
    /// Everybody.
    Shared,
}

/// The way to the API server; without any of them that of the pod's service account.
#[derive(Args, Clone, Debug)]
#[group(id = "api", multiple = true, conflicts_with = "manifests")]
pub struct ApiArgs {
    /// A kubeconfig, in place of the pod's service account
    #[arg(long, value_name = "FILE", env = "FLATFELL_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig, in place of its current one
    #[arg(long, value_name = "NAME", env = "FLATFELL_CONTEXT", requires = "kubeconfig")]
    pub context: Option<String>,
    /// The API server's address, in place of the one in the kubeconfig or of the Service in a pod
    #[arg(long, value_name = "URL", env = "FLATFELL_API_SERVER", value_parser = api_server)]
    pub api_server: Option<Uri>,
    /// A taint to take away from this node when policy is in force (needs the verb patch of nodes)
    #[arg(long, value_name = "KEY", env = "FLATFELL_STARTUP_TAINT", value_parser = taint)]
    pub startup_taint: Option<String>,
}

impl ApiArgs {
    /// The way these flags describe.
    pub fn access(&self) -> Access {
        Access {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            api_server: self.api_server.clone(),
        }
    }
}

/// A pod's connections to its own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OwnNodeEgress {
    /// Judged by the pod's egress rules.
    Enforce,
    /// Always allowed.
    Allow,
}

/// Running connections that a change of policy forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Established {
    /// Stopped.
    Cut,
    /// Left alone.
    Keep,
}

/// Policies deleted from a namespace that is Terminating.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Terminating {
    /// Their effect stays until no pod lives there.
    Keep,
    /// Their effect ends at once.
    Forget,
}

/// Where daemon and commands meet.
#[derive(Args, Clone, Debug)]
pub struct ControlArgs {
    /// The daemon's own directory, with its control socket; each daemon of a machine has its own
    #[arg(long, value_name = "DIR", env = "FLATFELL_RUN_DIR", default_value = "/run/flatfell")]
    pub run_dir: PathBuf,
}

/// `flatfell pause`.
#[derive(Args, Clone, Debug)]
pub struct PauseArgs {
    /// How long, as 90s, 10m or 1h30m; 24h at most
    #[arg(long = "for", value_name = "LENGTH", value_parser = crate::pause::length)]
    pub length: Duration,
    /// The control socket.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `flatfell cleanup`.
#[derive(Args, Clone, Debug)]
pub struct CleanupArgs {
    /// Stop a running daemon first, and wait until it has stopped
    #[arg(long)]
    pub stop: bool,
    /// Then stay: serve /healthz and /readyz, and keep daemons away, until SIGTERM
    #[arg(long)]
    pub stay: bool,
    /// Where --stay serves
    #[arg(long, value_name = "ADDRESS:PORT", env = "FLATFELL_LISTEN", default_value = DEFAULT_LISTEN, value_parser = listen)]
    pub listen: SocketAddr,
    /// The CNI plugin.
    #[command(flatten)]
    pub cni: CniArgs,
    /// The control socket.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `flatfell render`.
#[derive(Args, Clone, Debug)]
pub struct RenderArgs {
    /// The directory (or file) of manifests
    #[arg(value_name = "DIR")]
    pub manifests: PathBuf,
    /// The node to render for
    #[arg(long, value_name = "NAME", env = "FLATFELL_NODE", value_parser = node_name)]
    pub node: String,
    /// As `nft list ruleset` prints it, or as JSON
    #[arg(long, value_enum, default_value_t = RenderOutput::Nft)]
    pub output: RenderOutput,
    /// Whether pods are held to their egress rules towards their own node
    #[arg(long, env = "FLATFELL_OWN_NODE_EGRESS", value_enum, default_value_t = OwnNodeEgress::Enforce)]
    pub own_node_egress: OwnNodeEgress,
    /// A bridge that carries pods; repeat the flag (or use commas) for several
    #[arg(long = "pod-bridge", value_name = "NAME", env = "FLATFELL_POD_BRIDGES", value_delimiter = ',', value_parser = bridge)]
    pub pod_bridges: Vec<String>,
    /// Addresses that are no known pod's.
    #[command(flatten)]
    pub ranges: RangeArgs,
    /// What the rules log.
    #[command(flatten)]
    pub flows: FlowRuleArgs,
}

/// How a ruleset is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RenderOutput {
    /// nft's text.
    Nft,
    /// JSON.
    Json,
}

/// `flatfell check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The directory (or file) of manifests
    #[arg(value_name = "DIR")]
    pub manifests: PathBuf,
    /// Warnings fail the check too
    #[arg(long)]
    pub strict: bool,
    /// Print problems only
    #[arg(long, short)]
    pub quiet: bool,
}

/// `flatfell status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Where the daemon serves
    #[arg(long, value_name = "ADDRESS:PORT", env = "FLATFELL_LISTEN", default_value = DEFAULT_LISTEN, value_parser = listen)]
    pub address: SocketAddr,
    /// A table for people, or what the daemon said
    #[arg(long, value_enum, default_value_t = StatusOutput::Table)]
    pub output: StatusOutput,
}

/// How a status is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatusOutput {
    /// Aligned columns.
    Table,
    /// JSON.
    Json,
}

/// Why a flag's value is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No name a node can have.
    #[error(
        "a node's name has 1 to 253 lower-case letters, digits, '-' and '.', and begins and ends with a letter or digit"
    )]
    Node,
    /// No address to listen on.
    #[error(
        "expected an IP address and a port, as 127.0.0.1:9469, [::1]:9469 or 0.0.0.0:9469 (all addresses of the node)"
    )]
    Listen,
    /// No address of an API server.
    #[error("expected https://HOST or https://HOST:PORT, as https://10.0.0.1:6443 or https://[fd00::1]:6443")]
    ApiServer,
    /// No key a taint can have.
    #[error("a taint's key has letters, digits, '-', '_' and '.', with a domain and '/' before it if need be")]
    Taint,
    /// No name an interface can have.
    #[error("an interface's name has 1 to 15 bytes, without '/', ':' and white space")]
    Bridge,
    /// No place for the flow log.
    #[error("expected off, stdout or the path of a file with its directory, as /var/log/flatfell/flows.json")]
    FlowLog,
    /// No filter for log lines.
    #[error("expected error, warn, info, debug or trace, or directives as `info,flatfell::manifests=debug`: {0}")]
    LogLevel(String),
}

fn node_name(text: &str) -> Result<String, ConfigError> {
    let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let is_inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let fits = text.len() <= 253
        && text.chars().all(is_inside)
        && is_edge(text.chars().next())
        && is_edge(text.chars().next_back());
    if fits { Ok(text.to_owned()) } else { Err(ConfigError::Node) }
}

fn listen(text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| ConfigError::Listen)
}

fn api_server(text: &str) -> Result<Uri, ConfigError> {
    let uri: Uri = text.parse().map_err(|_| ConfigError::ApiServer)?;
    let fits = matches!(uri.scheme_str(), Some("https" | "http")) && uri.host().is_some_and(|host| !host.is_empty());
    if fits { Ok(uri) } else { Err(ConfigError::ApiServer) }
}

fn taint(text: &str) -> Result<String, ConfigError> {
    let is_inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let fits = !text.is_empty() && text.len() <= 317 && text.chars().all(is_inside);
    if fits { Ok(text.to_owned()) } else { Err(ConfigError::Taint) }
}

fn bridge(text: &str) -> Result<String, ConfigError> {
    let fits = (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace());
    if fits { Ok(text.to_owned()) } else { Err(ConfigError::Bridge) }
}

fn log_level(text: &str) -> Result<String, ConfigError> {
    let known = ["error", "warn", "info", "debug", "trace", "off"];
    // A lone word that is no level would be taken for a module's name, and everything else would be silent.
    if !text.contains(['=', ',']) && !known.contains(&text) {
        return Err(ConfigError::LogLevel(format!("{text:?} is no level")));
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| ConfigError::LogLevel(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_are_refused() {
        for name in ["worker-1", "a", "ip-10-0-0-1.eu.internal"] {
            assert_eq!(node_name(name), Ok(name.to_owned()));
        }
        for name in ["", "Worker", "-a", "a-", "a b", "a/b", &"a".repeat(254)] {
            assert_eq!(node_name(name), Err(ConfigError::Node), "{name}");
        }
        assert_eq!(bridge("cni0"), Ok("cni0".to_owned()));
        for name in ["", "a/b", "a b", "..", "sixteen-bytes-xy"] {
            assert_eq!(bridge(name), Err(ConfigError::Bridge), "{name}");
        }
    }

    #[test]
    fn an_address_needs_a_port() {
        assert!(listen("[::1]:9469").is_ok());
        for text in ["localhost:9469", ":9469", "127.0.0.1", "127.0.0.1:70000"] {
            assert_eq!(listen(text), Err(ConfigError::Listen), "{text}");
        }
    }

    #[test]
    fn an_api_server_has_a_scheme_and_a_host() {
        for text in ["https://10.0.0.1:6443", "https://[fd00::1]:6443", "http://127.0.0.1:8001", "https://api.example"]
        {
            assert!(api_server(text).is_ok(), "{text}");
        }
        for text in ["10.0.0.1:6443", "api", "ftp://api", "https://", "", "https://a b"] {
            assert_eq!(api_server(text), Err(ConfigError::ApiServer), "{text}");
        }
        assert!(taint("flatfell.io/not-ready").is_ok());
        assert_eq!(taint("a b"), Err(ConfigError::Taint));
    }

    #[test]
    fn there_is_one_source() {
        let run = |words: &str| Cli::try_parse_from(format!("flatfell run --node n {words}").split_whitespace());
        assert!(run("").is_ok() && run("--manifests d").is_ok() && run("--kubeconfig f --context c").is_ok());
        assert!(run("--manifests d --kubeconfig f").is_err());
        assert!(run("--manifests d --api-server https://a").is_err());
        assert!(run("--context c").is_err());
    }

    #[test]
    fn a_misspelt_level_does_not_silence_the_log() {
        assert!(log_level("debug").is_ok());
        assert!(log_level("info,flatfell::manifests=debug").is_ok());
        assert!(matches!(log_level("inof"), Err(ConfigError::LogLevel(_))));
    }

    #[test]
    fn the_arguments_hold_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
