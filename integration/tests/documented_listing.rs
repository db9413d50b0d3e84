//! docs/listing.nft is what nft lists on a live node, and docs/dataplane.md quotes it word by word.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

fn document(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).unwrap()
}

#[test]
fn the_documented_listing_is_that_of_a_live_node() {
    let output = Command::new(env!("CARGO_BIN_EXE_demo")).arg("--listing").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let live = String::from_utf8(output.stdout).unwrap();
    assert!(live == document("listing.nft"), "docs/listing.nft is old: run `make listing`. It is now:\n{live}");
}

#[test]
fn what_the_page_quotes_is_in_the_listing() {
    let (page, listing) = (document("dataplane.md"), document("listing.nft"));
    let known: BTreeSet<&str> = listing.lines().map(str::trim).collect();
    let quoted: Vec<&str> = page.split("```nft\n").skip(1).flat_map(|block| block.split("```").next()).collect();
    let lines: Vec<&str> = quoted.iter().flat_map(|block| block.lines()).map(str::trim).collect();
    assert!(lines.len() > 20, "the page quotes nothing");
    for line in lines {
        assert!(known.contains(line), "not in docs/listing.nft: {line}");
    }
}
