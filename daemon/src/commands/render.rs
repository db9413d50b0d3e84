//! `flatfell render`: the ruleset that a directory gives for a node.
//!
//! In: a directory, a node's name. Out: nft's text or JSON on standard output, what is wrong on standard error, and exit
//! code 1 when some of the files could not be read. What always holds: the kernel is not touched, so ports of bridges
//! and generations are those of a node that just started.

use std::process::ExitCode;

use flatfell_rules::compile::{Layout, compile};
use flatfell_rules::effective::evaluate;
use flatfell_rules::ids::Ids;
use flatfell_rules::index::Index;
use flatfell_rules::ranges::PodRanges;
use flatfell_rules::ruleset::text;

use super::terminal::print;
use crate::config::{OwnNodeEgress, RangeArgs, RenderArgs, RenderOutput, UnknownPods};
use crate::manifests::change;
use crate::manifests::{Directory, Severity, Update};

/// Runs the command.
pub fn execute(args: &RenderArgs) -> anyhow::Result<ExitCode> {
    let directory = super::read(&args.manifests)?;
    for problem in directory.problems().iter().filter(|problem| problem.severity != Severity::Note) {
        eprintln!("{problem}");
    }
    let effective = evaluate(&index(&directory, &args.node));
    if effective.pods().is_empty() {
        eprintln!("no pod with an address has spec.nodeName {}", args.node);
    }
    let layout = Layout {
        bridges: args.pod_bridges.iter().cloned().collect(),
        pod_ranges: ranges(&args.ranges),
        own_node_egress: args.own_node_egress == OwnNodeEgress::Enforce,
        flow_log: args.flows.flow_log(),
        ids: Ids::fresh(&effective),
        ..Layout::default()
    };
    let ruleset = compile(&effective, &layout).ruleset;
    match args.output {
        RenderOutput::Nft => print(&text::ruleset(&ruleset))?,
        RenderOutput::Json => print(&format!("{}\n", serde_json::to_string_pretty(&ruleset)?))?,
    }
    Ok(if directory.unknown().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is told of them: what the node's own addresses are there, its interfaces know.
fn ranges(args: &RangeArgs) -> PodRanges {
    match args.unknown_pods {
        UnknownPods::Drop => PodRanges::new(&args.pod_cidrs, []),
        UnknownPods::Allow => PodRanges::default(),
    }
}

fn index(directory: &Directory, node: &str) -> Index {
    let mut index = Index::new(node);
    for object in directory.objects() {
        index.apply(change(Update::Put(object.clone())));
    }
    index
}
