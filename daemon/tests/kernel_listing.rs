//! What the kernel is given is what nft would have given it, but for a mark that is fetched once: its listing says so, and loads to the same.

mod kernel_common;

use flatfell::kernel::Kernel;
use kernel_common::*;

#[test]
fn everything_lists_as_written_down() {
    in_namespace(|| {
        let ruleset = everything();
        let mut kernel = Kernel::open().expect("socket");
        kernel.commit(&make(&ruleset)).expect("commit");
        let listing: String = ruleset.tables.keys().map(list).collect();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/everything.nft");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(golden, &listing).expect("golden");
        }
        assert_eq!(listing, std::fs::read_to_string(golden).expect("golden"));
    });
}

/// The bytecode of each rule, in order, and the bytes of each element, in any order, as nft reads them from the kernel.
/// nft adds to each interval set where the gap before the first interval ends; it says nothing.
fn bytecode() -> (Vec<String>, Vec<String>) {
    let all = run("nft", &["--debug=netlink", "-s", "list", "ruleset"]);
    let rows = || all.lines().flat_map(|line| line.split('\t')).map(|row| row.trim().to_owned());
    let first_gap = |row: &str| row.contains(": 1 [end]") && row.split(' ').nth(1).is_some_and(|key| key == "00000000");
    let mut elements: Vec<_> = rows().filter(|row| row.starts_with("element ") && !first_gap(row)).collect();
    elements.sort();
    (rows().filter(|row| row.starts_with('[')).flat_map(with_mark_fetched).collect(), elements)
}

/// A row that asks the kept mark, as nft has it: it fetches the mark each time.
fn with_mark_fetched(row: String) -> Vec<String> {
    const FETCH: &str = "[ ct load mark => reg ";
    if row == format!("{FETCH}4 ]") {
        Vec::new()
    } else if row.contains("reg 4 ") {
        vec![format!("{FETCH}1 ]"), row.replace("reg 4 ", "reg 1 ")]
    } else {
        vec![row]
    }
}

#[test]
fn what_nft_makes_of_its_own_listing_is_the_same_bytecode() {
    let ruleset = everything();
    let mut ours = Default::default();
    in_namespace(|| {
        let mut kernel = Kernel::open().expect("socket");
        kernel.commit(&make(&ruleset)).expect("commit");
        ours = (run("nft", &["-s", "list", "ruleset"]), bytecode());
    });
    in_namespace(|| {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), &ours.0).expect("write");
        run("nft", &["-f", file.path().to_str().expect("path")]);
        assert_eq!(run("nft", &["-s", "list", "ruleset"]), ours.0);
        assert_eq!(bytecode(), ours.1);
    });
}
