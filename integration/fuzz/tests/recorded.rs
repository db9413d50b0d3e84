//! What a real kernel sent is read: the guard before libnftnl takes nothing away.
//!
//! In: the recorded seeds of the netlink corpus. Out: nothing. What always holds: all of it was made by a daemon.

use std::fs;
use std::path::Path;

use flatfell::fuzzing::{Dumped, is_foreign, tables};
use flatfell_rules::ruleset::{Chain, Expr};

/// The seeds whose name begins like this, as they are read.
fn recorded(prefix: &str) -> Vec<(String, Dumped)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/netlink");
    let entries = fs::read_dir(directory).expect("a corpus").map(|entry| entry.expect("an entry").path());
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    let read = |path: &Path| tables(&fs::read(path).expect("a seed")[1..], &Chain::default()).expect("well formed");
    let all: Vec<_> =
        entries.filter(|path| name(path).starts_with(prefix)).map(|path| (name(&path), read(&path))).collect();
    assert!(!all.is_empty(), "{prefix}");
    all
}

#[test]
fn rules_are_readable() {
    for (name, dumped) in recorded("nftables-rule-") {
        let [rule] = &dumped.rules[..] else { panic!("{name}: {dumped:?}") };
        assert!(matches!(&rule.exprs[..], [Expr::Foreign(text)] if text.contains("[ ")), "{name}: {rule:?}");
        assert!(!rule.comment.contains("unreadable"), "{name}: {rule:?}");
    }
}

#[test]
fn elements_are_readable() {
    for (name, dumped) in recorded("nftables-elements-") {
        assert!(
            !dumped.elements.is_empty() && !dumped.elements.iter().any(|(element, _)| is_foreign(&element)),
            "{name}: {dumped:?}"
        );
    }
}
