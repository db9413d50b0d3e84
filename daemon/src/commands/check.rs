//! `flatfell check`: what is wrong with a directory of manifests.
//!
//! In: a directory. Out: a line for each problem, a summary, and exit code 1 when there are errors (with `--strict`,
//! warnings too). What always holds: it says what `flatfell run` would say about the same files.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use super::terminal::{Colour, Style, print};
use crate::config::CheckArgs;
use crate::manifests::{Directory, Object, Problem, Severity};

/// Runs the command.
pub fn execute(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let directory = super::read(&args.manifests)?;
    let style = Style::detect();
    let mut counts: BTreeMap<Severity, usize> = BTreeMap::new();
    let mut text = String::new();
    for problem in directory.problems() {
        *counts.entry(problem.severity).or_default() += 1;
        if problem.severity != Severity::Note || !args.quiet {
            text.push_str(&line(style, problem));
        }
    }
    for hint in namespaces_without_object(&directory) {
        *counts.entry(Severity::Warning).or_default() += 1;
        text.push_str(&format!("{}: {hint}\n", style.paint(Colour::Yellow, "warning")));
    }
    let count = |severity| counts.get(&severity).copied().unwrap_or(0);
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if !args.quiet {
        text.push_str(&summary(style, &directory, errors, warnings));
    }
    print(&text)?;
    let failed = errors > 0 || (args.strict && warnings > 0);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn line(style: Style, problem: &Problem) -> String {
    let text = problem.to_string();
    let colour = match problem.severity {
        Severity::Error => Colour::Red,
        Severity::Warning => Colour::Yellow,
        Severity::Note => Colour::Dim,
    };
    let place = problem.place.to_string();
    let rest = text.strip_prefix(&place).unwrap_or(&text);
    format!("{}{rest}\n", style.paint(colour, &place))
}

fn summary(style: Style, directory: &Directory, errors: usize, warnings: usize) -> String {
    let files = plural(directory.file_count(), "file");
    let (mut namespaces, mut pods, mut policies) = (0, 0, 0);
    for object in directory.objects() {
        match object.as_ref() {
            Object::Namespace(_) => namespaces += 1,
            Object::Pod(_) => pods += 1,
            Object::Policy(_) => policies += 1,
        }
    }
    let what = format!(
        "{files}: {}, {}, {policies} {}",
        plural(namespaces, "namespace"),
        plural(pods, "pod"),
        if policies == 1 { "policy" } else { "policies" }
    );
    let outcome = match (errors, warnings) {
        (0, 0) => style.paint(Colour::Green, "nothing wrong"),
        (0, _) => style.paint(Colour::Yellow, &plural(warnings, "warning")),
        _ => style.paint(Colour::Red, &format!("{}, {}", plural(errors, "error"), plural(warnings, "warning"))),
    };
    format!("{what}: {outcome}\n")
}

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

/// Namespaces that pods or policies live in but that no manifest describes: nothing is known of their labels.
fn namespaces_without_object(directory: &Directory) -> Vec<String> {
    let mut known = BTreeSet::new();
    let mut used: BTreeMap<&str, usize> = BTreeMap::new();
    for object in directory.objects() {
        match object.as_ref() {
            Object::Namespace(namespace) => {
                known.insert(namespace.name.as_str());
            }
            Object::Pod(pod) => *used.entry(&pod.name.namespace).or_default() += 1,
            Object::Policy(_) => {}
        }
    }
    used.into_iter()
        .filter(|(namespace, _)| !known.contains(namespace))
        .map(|(namespace, pods)| {
            let pods = plural(pods, "pod");
            format!("no Namespace {namespace} in these manifests: no namespaceSelector matches its {pods}")
        })
        .collect()
}
