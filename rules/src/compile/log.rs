//! The flow log's part in the kernel: what is denied or audited is copied to an NFLOG group, up to a rate.
//!
//! In: the [`FlowLog`] of the layout. Out: for each direction a chain that every denial goes through and one that every
//! audited packet visits. What always holds: the verdict does not depend on the log; while there is one, each such packet
//! is counted once, as sent to the log or as beyond its rate.

use super::base::DENIED;
use super::part::Part;
use super::{CounterMeaning, FlowLog, Logged};
use crate::policy::Direction;
use crate::ruleset::{Chain, Expr, Name, Rule, Verdict};

/// Bytes of a packet that are copied: the longest headers that occur (IPv6, some extensions, TCP) are within.
const SNAPLEN: u32 = 128;

/// The chain that a denial goes to.
pub(super) fn denied(direction: Direction) -> String {
    format!("denied-{direction}")
}

/// The chain that an audited packet comes back from.
pub(super) fn audited(direction: Direction) -> String {
    format!("audited-{direction}")
}

/// The chains of both directions.
pub(super) fn add_chains(table: &mut Part, log: Option<FlowLog>) {
    for direction in Direction::BOTH {
        let end = Verdict::Goto(DENIED.into());
        let rules = logged(table, log, &format!("denied {direction}"), &end);
        let comment = format!("denials of {direction}");
        table.chain(denied(direction), Chain { hook: None, comment, rules });
        let rules = logged(table, log, &format!("audited {direction}"), &Verdict::Return);
        let comment = format!("what audited policies would deny of {direction}");
        table.chain(audited(direction), Chain { hook: None, comment, rules });
    }
}

/// Logs a packet or counts it as not logged; both end alike.
fn logged(table: &mut Part, log: Option<FlowLog>, prefix: &str, end: &Verdict) -> Vec<Rule> {
    let end = Expr::Verdict(end.clone());
    let Some(FlowLog { group, rate }) = log else {
        return vec![Rule { exprs: vec![end], comment: String::new() }];
    };
    let sent = vec![
        Expr::Limit { rate: u64::from(rate), burst: rate },
        Expr::Counter(counter(table, Logged::Sent)),
        Expr::Log { prefix: prefix.to_owned(), group, snaplen: SNAPLEN },
        end.clone(),
    ];
    let beyond = vec![Expr::Counter(counter(table, Logged::BeyondRate)), end];
    [(sent, "flow log"), (beyond, "beyond its rate")]
        .map(|(exprs, comment)| Rule { exprs, comment: comment.to_owned() })
        .into()
}

fn counter(table: &mut Part, logged: Logged) -> Name {
    let word = logged.word();
    table.counter(("flow-log", word, word), &format!("flow log: {word}"), CounterMeaning::FlowLog(logged))
}
