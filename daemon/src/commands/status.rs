//! `flatfell status`: what the running daemon says, as tables.
//!
//! In: the daemon's address. Out: its [`Report`] for people, or as JSON. What always holds: numbers are the daemon's own;
//! nothing is computed from them here.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::terminal::{Cell, Colour, Style, print, table};
use crate::config::{StatusArgs, StatusOutput};
use crate::flows::DenialReport;
use crate::status::{DirectionReport, PodReport, Report, RuleReport};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest answer that is read.
const ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Runs the command.
pub fn execute(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let body = runtime
        .block_on(async { timeout(PATIENCE, fetch(args.address)).await })
        .with_context(|| format!("no answer from {} within {PATIENCE:?}", args.address))?
        .with_context(|| format!("the daemon at {} cannot be asked (--address names another)", args.address))?;
    let report: Report =
        serde_json::from_slice(&body).with_context(|| format!("{} answers, but not as flatfell does", args.address))?;
    match args.output {
        StatusOutput::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
        StatusOutput::Table => print(&tables(Style::detect(), &report))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn fetch(address: SocketAddr) -> anyhow::Result<Bytes> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/status").header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::OK {
        bail!("it answers {}", response.status());
    }
    let body =
        Limited::new(response.into_body(), ANSWER_BYTES).collect().await.map_err(|error| anyhow::anyhow!(error))?;
    connection.abort();
    Ok(body.to_bytes())
}

fn tables(style: Style, report: &Report) -> String {
    let mut text = summary(style, report);
    let mut section = |title: &str, body: String| {
        if !body.is_empty() {
            text.push_str(&format!("\n{}\n{body}", style.paint(Colour::Bold, title)));
        }
    };
    section("Not ready", list(style, Colour::Red, &report.not_ready));
    section("Notes", list(style, Colour::Yellow, &report.notes));
    section("Errors", list(style, Colour::Red, &report.source.errors));
    section("Warnings", list(style, Colour::Yellow, &[report.warnings.as_slice(), &report.source.warnings].concat()));
    section("Pods of this node", pods(style, &report.pods));
    section("Rules", rules(style, &report.rules));
    section("Denied most, of the last ten minutes (packets in the flow log)", denials(style, &report.denials));
    section("Guards (ways round every policy)", guards(style, report));
    text
}

fn summary(style: Style, report: &Report) -> String {
    let ready = if report.ready { style.paint(Colour::Green, "ready") } else { style.paint(Colour::Red, "not ready") };
    let synced = if report.synced { "" } else { ", the newest policy is not in the kernel yet" };
    let transactions = &report.transactions;
    let locked = if report.locked { " (locked)" } else { "" };
    let mut text = format!(
        "node {} is {ready}{synced} (flatfell {}, table {}{locked}, generation {})\n",
        report.node, report.version, report.slot, report.generation
    );
    let files = if report.source.files > 0 { format!(" in {} files", report.source.files) } else { String::new() };
    text.push_str(&format!("{}: {} objects{files}\n", report.source.origin, report.source.objects));
    text.push_str(&format!(
        "{} transactions with {} operations, {} failed, {} takeovers\n",
        transactions.committed, transactions.operations, transactions.failed, transactions.takeovers
    ));
    let failures = [("last failed transaction", &transactions.last_error), ("no counters", &report.counters_error)];
    for (what, error) in failures {
        if let Some(error) = error {
            text.push_str(&format!("{}: {error}\n", style.paint(Colour::Red, what)));
        }
    }
    text
}

fn list(style: Style, colour: Colour, lines: &[String]) -> String {
    lines.iter().map(|line| format!("{} {line}\n", style.paint(colour, "-"))).collect()
}

fn pods(style: Style, pods: &[PodReport]) -> String {
    if pods.is_empty() {
        return "none\n".to_owned();
    }
    let row = |pod: &PodReport| {
        vec![
            Cell::text(format!("{}/{}", pod.namespace, pod.name)),
            Cell::text(pod.addresses.join(" ")),
            spoofed(pod),
            isolation(&pod.ingress),
            dropped(&pod.ingress),
            isolation(&pod.egress),
            dropped(&pod.egress),
        ]
    };
    let heading = ["POD", "ADDRESSES", "SPOOFED", "INGRESS", "DROPPED", "EGRESS", "DROPPED"];
    table(style, &heading, &pods.iter().map(row).collect::<Vec<_>>())
}

/// Frames sent as somebody else.
fn spoofed(pod: &PodReport) -> Cell {
    let cell = Cell::number(pod.spoofed.packets);
    if pod.spoofed.packets > 0 { cell.in_colour(Colour::Red) } else { cell }
}

fn isolation(direction: &DirectionReport) -> Cell {
    let cell = Cell::text(direction.isolation.clone());
    match direction.isolation.as_str() {
        "isolated" => cell.in_colour(Colour::Green),
        "audited" => cell.in_colour(Colour::Yellow),
        _ => cell,
    }
}

/// Packets dropped, or those an audited policy would have dropped.
fn dropped(direction: &DirectionReport) -> Cell {
    let (would, did) = (direction.would_drop.packets, direction.dropped.packets);
    let cell = Cell::number(if direction.isolation == "audited" { would } else { did });
    if did > 0 { cell.in_colour(Colour::Red) } else { cell }
}

fn rules(style: Style, rules: &[RuleReport]) -> String {
    if rules.is_empty() {
        return "none\n".to_owned();
    }
    let row = |rule: &RuleReport| {
        vec![
            Cell::text(format!("{}/{}", rule.namespace, rule.policy)),
            Cell::text(rule.direction.clone()),
            Cell::number(u64::try_from(rule.index).unwrap_or(u64::MAX)),
            Cell::text(rule.rule.clone()).in_colour(Colour::Dim),
            Cell::number(rule.traffic.packets),
            Cell::number(rule.traffic.bytes),
            Cell::text(rule.content.clone()),
        ]
    };
    let heading = ["POLICY", "DIRECTION", "#", "RULE", "PACKETS", "BYTES", "SAYS"];
    table(style, &heading, &rules.iter().map(row).collect::<Vec<_>>())
}

fn denials(style: Style, denials: &[DenialReport]) -> String {
    if denials.is_empty() {
        return String::new();
    }
    let row = |denial: &DenialReport| {
        vec![
            Cell::text(denial.pod.clone()),
            Cell::text(denial.direction.word()),
            Cell::text(denial.verdict.word()),
            Cell::text(denial.peer.clone()),
            Cell::text(denial.service.clone()),
            Cell::number(denial.packets),
            Cell::text(denial.last.clone()),
            Cell::text(denial.policies.join(" ")),
        ]
    };
    let heading = ["POD", "DIRECTION", "VERDICT", "PEER", "SERVICE", "PACKETS", "LAST", "POLICIES"];
    table(style, &heading, &denials.iter().map(row).collect::<Vec<_>>())
}

fn guards(style: Style, report: &Report) -> String {
    if report.guards.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<Cell>> = report
        .guards
        .iter()
        .map(|(guard, traffic)| {
            vec![Cell::text(guard.clone()), Cell::number(traffic.packets), Cell::number(traffic.bytes)]
        })
        .collect();
    table(style, &["GUARD", "PACKETS", "BYTES"], &rows)
}
