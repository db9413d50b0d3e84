//! What CI runs of the fuzzers, on a stable compiler: every corpus, and mutations of its entries.
//!
//! In: the corpora; `FLATFELL_SEED` (1), `FLATFELL_FUZZ_CASES` (mutations of each entry). Out: nothing, or the input that a target does not stand, which is
//! printed and left in `target/fuzz-findings`. What always holds: the same seed gives the same mutations on every machine.

use std::path::{Path, PathBuf};
use std::{env, fs, thread};

use flatfell_fuzz::{TARGETS, Target};
use flatfell_rules::sim::generate::Random;

/// Bytes of an input at most, as with `make fuzz`.
const LONGEST: usize = 4096;

fn from_environment(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("a seed")).collect()
}

/// An input that is being run; it is kept when it ends in a panic.
struct Running<'a> {
    target: &'a str,
    bytes: &'a [u8],
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fuzz-findings");
            let file = directory.join(self.target);
            let kept = fs::create_dir_all(directory).and_then(|()| fs::write(&file, self.bytes));
            eprintln!("{}: {kept:?}, {}: {}", self.target, file.display(), self.bytes.escape_ascii());
        }
    }
}

fn run((name, target): Target, bytes: &[u8]) {
    let _running = Running { target: name, bytes };
    target(bytes);
}

/// Some of the input is turned into something else, up to eight times.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>, all: &[Vec<u8>]) {
    for _ in 0..random.between(1, 8) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(16)).min(bytes.len());
        match random.below(7) {
            0 => bytes.truncate(at.max(1)),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            3 => {
                let other = random.pick(all);
                let from = random.below(other.len() + 1);
                let to = (from + random.below(64)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            4 => bytes
                .splice(at..end, *random.pick(&[[0; 4], [255; 4], [0, 0, 0, 1], [0x7f, 255, 255, 255]]))
                .for_each(drop),
            5 => bytes.splice(at..end, random.pick(&TOKENS).bytes()).for_each(drop),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    bytes.truncate(LONGEST);
}

/// What means something to one reader or the other.
const TOKENS: [&str; 12] =
    ["null", "{}", "[]", "- ", "\n", "\"", "a/b", "0.0.0.0/0", "::/0", "shut", "NetworkPolicy", "99999999999999999999"];

fn replay(name: &str) {
    let target = *TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    let corpus = corpus(name);
    assert!(!corpus.is_empty());
    run(target, &[]);
    corpus.iter().for_each(|entry| run(target, entry));
    let mut random = Random::new(from_environment("FLATFELL_SEED", 1));
    for entry in &corpus {
        for _ in 0..from_environment("FLATFELL_FUZZ_CASES", 40) {
            let mut bytes = entry.clone();
            mutate(&mut random, &mut bytes, &corpus);
            run(target, &bytes);
        }
    }
}

#[test]
fn manifests() {
    replay("manifests");
}

#[test]
fn api() {
    replay("api");
}

#[test]
fn netlink() {
    replay("netlink");
}

#[test]
fn nflog() {
    replay("nflog");
}

#[test]
fn cni() {
    replay("cni");
}

#[test]
fn state() {
    replay("state");
}

/// A fuzzer for each target, and a corpus.
#[test]
fn every_target_has_a_fuzzer() {
    let wrappers = Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer/targets");
    for (name, _) in TARGETS {
        let wrapper = fs::read_to_string(wrappers.join(format!("{name}.rs"))).expect("a fuzzer");
        assert!(wrapper.contains(&format!("flatfell_fuzz::{name}::run(bytes)")), "{wrapper}");
    }
    assert_eq!(fs::read_dir(wrappers).expect("fuzzers").count(), TARGETS.len());
}
