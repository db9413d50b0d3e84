//! Flags about the flow log.
//!
//! In: arguments and environment. Out: what the flow log and its readers are told. What always holds: as [`super`].

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use flatfell_rules::compile::FlowLog;

use super::{ConfigError, ControlArgs};
use crate::flows::{Filter, FlowConfig, Output, Verdict};

/// The flow log.
#[derive(Args, Clone, Debug)]
pub struct FlowLogArgs {
    /// Where denied and audited packets are written, one JSON object a line: off, stdout, or a file
    #[arg(long, value_name = "off|stdout|FILE", env = "FLATFELL_FLOW_LOG", default_value = "off", value_parser = flow_output)]
    pub flow_log: FlowOutput,
    /// Bytes of one file of the flow log; then it is rotated
    #[arg(long, value_name = "BYTES", env = "FLATFELL_FLOW_LOG_MAX_BYTES", default_value_t = 100 << 20, value_parser = clap::value_parser!(u64).range(65_536..))]
    pub flow_log_max_bytes: u64,
    /// Files of the flow log that are kept, the current one too
    #[arg(long, value_name = "COUNT", env = "FLATFELL_FLOW_LOG_FILES", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub flow_log_files: u32,
    /// Packets a second of one pod in the flow log
    #[arg(long, value_name = "PACKETS", env = "FLATFELL_FLOW_LOG_POD_RATE", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub flow_log_pod_rate: u32,
    /// What the rules in the kernel log.
    #[command(flatten)]
    pub kernel: FlowRuleArgs,
    /// Denials are Kubernetes Events of their pods too (needs the verb create of events in events.k8s.io)
    #[arg(long, env = "FLATFELL_EVENTS", conflicts_with = "manifests")]
    pub events: bool,
}

impl FlowLogArgs {
    /// The flow log's part.
    pub fn config(&self) -> FlowConfig {
        let output = match &self.flow_log {
            FlowOutput::Off => None,
            FlowOutput::Stdout => Some(Output::Stdout),
            FlowOutput::File(path) => Some(Output::File {
                path: path.clone(),
                max_bytes: self.flow_log_max_bytes,
                files: self.flow_log_files,
            }),
        };
        FlowConfig { kernel: self.kernel.flow_log(), pod_rate: self.flow_log_pod_rate, output }
    }
}

/// What the rules in the kernel log.
#[derive(Args, Clone, Debug)]
pub struct FlowRuleArgs {
    /// The NFLOG group of denied and audited packets; no other program of the node may have it
    #[arg(long, value_name = "GROUP", env = "FLATFELL_FLOW_LOG_GROUP", default_value_t = 9469)]
    pub flow_log_group: u16,
    /// Packets a second that the kernel logs, for each verdict and direction; 0: none, and no `flatfell flows`
    #[arg(long, value_name = "PACKETS", env = "FLATFELL_FLOW_LOG_RATE", default_value_t = 500, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub flow_log_rate: u32,
}

impl FlowRuleArgs {
    /// Group and rate, if anything is logged.
    pub fn flow_log(&self) -> Option<FlowLog> {
        (self.flow_log_rate > 0).then_some(FlowLog { group: self.flow_log_group, rate: self.flow_log_rate })
    }
}

/// Where the flow log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowOutput {
    /// Nowhere.
    Off,
    /// To standard output.
    Stdout,
    /// To a file.
    File(PathBuf),
}

/// `flatfell flows`.
#[derive(Args, Clone, Debug)]
pub struct FlowsArgs {
    /// Go on with those to come
    #[arg(long, short)]
    pub follow: bool,
    /// Only of pods of this namespace
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Only of this pod, by name or as namespace/name
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,
    /// Only by this policy, by name or as namespace/name
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// Only denied, or only audited
    #[arg(long, value_enum)]
    pub verdict: Option<Verdict>,
    /// A table for people, or one JSON object a line
    #[arg(long, value_enum, default_value_t = FlowsOutput::Table)]
    pub output: FlowsOutput,
    /// The control socket.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl FlowsArgs {
    /// Which records are asked for.
    pub fn filter(&self) -> Filter {
        Filter {
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            policy: self.policy.clone(),
            verdict: self.verdict,
        }
    }
}

/// How records are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowsOutput {
    /// Aligned columns.
    Table,
    /// JSON.
    Json,
}

fn flow_output(text: &str) -> Result<FlowOutput, ConfigError> {
    match text {
        "off" => Ok(FlowOutput::Off),
        "stdout" | "-" => Ok(FlowOutput::Stdout),
        // A misspelt word would be a file in some directory.
        path if path.contains('/') => Ok(FlowOutput::File(PathBuf::from(path))),
        _ => Err(ConfigError::FlowLog),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_is_no_file() {
        assert_eq!(flow_output("stdout"), Ok(FlowOutput::Stdout));
        assert_eq!(flow_output("/log/flows"), Ok(FlowOutput::File("/log/flows".into())));
        assert_eq!(flow_output("stdot"), Err(ConfigError::FlowLog));
    }
}
