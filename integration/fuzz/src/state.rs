//! The control socket, and the file of totals.
//!
//! In: a byte (which), a line or the file. Out: nothing. What always holds: a request that is written reads back as itself; no total falls, and what the file
//! carried counts.

use std::fs;

use flatfell::control::{Answer, FlowLine, Request};
use flatfell::kernel::Counters;
use flatfell::totals::{FILE, Totals};
use flatfell_rules::ruleset::{CounterValue, Name};
use serde::{Serialize, de::DeserializeOwned};

use crate::scratch;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Some((what, rest)) = bytes.split_first() else { return };
    match what & 3 {
        0 => reads_back::<Request>(rest),
        1 => reads_back::<Answer>(rest),
        2 => reads_back::<FlowLine>(rest),
        _ => totals(rest),
    }
}

fn reads_back<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(read) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&read).expect("JSON");
        assert_eq!(serde_json::from_slice::<T>(&written).expect("JSON"), read);
    }
}

fn totals(bytes: &[u8]) {
    let file = scratch::directory("totals").join(FILE);
    fs::write(&file, bytes).expect("a file");
    let name: Name = "x".into();
    let (mut totals, _) = Totals::open(Some(file.clone()));
    let mut before = totals.total(&name).unwrap_or_default();
    for packets in [5, 7, 2, u64::MAX, 1] {
        let read = Counters::from_iter([(name.clone(), CounterValue { packets, bytes: packets })]);
        totals.read(&[read]).expect("a file");
        let total = totals.total(&name).expect("a total");
        assert!(total.packets >= before.packets && total.bytes >= before.bytes, "{before:?} became {total:?}");
        before = total;
    }
    let (again, error) = Totals::open(Some(file));
    assert!(error.is_none(), "{error:?}");
    assert!(again.total(&name).is_some());
}
