//! What a container runtime gives the plugin, and what comes in at the daemon's socket for it.
//!
//! In: a byte (which of them), and that: variables, a line each, then a configuration; a request; the file of sandboxes; a conflist. Out: nothing. What always
//! holds: no daemon is asked; a request that is written reads back as itself; a conflist is what it was when our entry is out of it again.

use std::cell::RefCell;
use std::fs;

use flatfell::cni::conflist;
use flatfell::cni::sandboxes::{SANDBOXES_MAX, Sandboxes};
use flatfell_cni::call::{self, Command};
use flatfell_cni::conf::{self, Conf, Previous};
use flatfell_cni::message::Request;
use flatfell_cni::plugin;
use flatfell_rules::index::Change;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{scratch, world};

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Some((what, rest)) = bytes.split_first() else { return };
    match what & 3 {
        0 => plugin(rest),
        1 => request(rest),
        2 => file(rest),
        _ => std::str::from_utf8(rest).map_or((), conflist),
    }
}

/// Variables `NAME=value` up to an empty line, then standard input.
fn plugin(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (head, input) = text.split_once("\n\n").unwrap_or((&text, ""));
    let variables = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once('='));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    };
    let asks_nobody = matches!(call::command(&variables), Ok(Command::Version) | Err(_));
    if asks_nobody {
        let (Ok(printed) | Err(printed)) = plugin::run(variables, input.as_bytes());
        let printed: Value = serde_json::from_str(&printed).expect("JSON, whatever comes in");
        assert!(printed["cniVersion"].is_string(), "{printed}");
    }
    let attachment = call::attachment(&variables);
    let _ = call::netns(&variables);
    let _ = call::pod(&variables);
    let version = conf::version(input.as_bytes());
    match Conf::parse(input.as_bytes()) {
        Ok(conf) => {
            let interface = attachment.map_or_else(|_| "eth0".to_owned(), |attachment| attachment.interface);
            if let Some(previous) = &conf.previous {
                let _ = Previous::parse(previous, &interface).map_err(|error| error.to_json(&version));
            }
        }
        Err(error) => drop(serde_json::from_str::<Value>(&error.to_json(&version)).expect("JSON")),
    }
}

thread_local! {
    /// Many requests in one file are what grows; it begins anew from time to time.
    static ASKED: RefCell<u32> = const { RefCell::new(0) };
}

fn request(bytes: &[u8]) {
    let Ok(request) = serde_json::from_slice::<Request>(bytes) else { return };
    let written = serde_json::to_vec(&request).expect("JSON");
    assert_eq!(serde_json::from_slice::<Request>(&written).expect("JSON"), request);
    let directory = scratch::directory("sandboxes");
    let begins_anew = ASKED.with_borrow_mut(|asked| {
        *asked += 1;
        *asked % 64 == 0
    });
    if begins_anew {
        fs::remove_file(directory.join("sandboxes.json")).unwrap_or_default();
    }
    let (changes, mut heard) = mpsc::unbounded_channel();
    let sandboxes = Sandboxes::open(&directory, changes, Box::new(drop));
    let _ = match request {
        Request::Add(sandbox, _) => sandboxes.add(&sandbox),
        Request::Check(_) | Request::Status => Ok(()),
        Request::Delete(attachment) => sandboxes.delete(&attachment),
        Request::Keep(attachments) => sandboxes.keep(&attachments),
    };
    put_beside(&sandboxes, &mut heard);
}

fn file(bytes: &[u8]) {
    let directory = scratch::directory("file");
    fs::write(directory.join("sandboxes.json"), bytes).expect("a file");
    let (changes, mut heard) = mpsc::unbounded_channel();
    let sandboxes = Sandboxes::open(&directory, changes, Box::new(drop));
    put_beside(&sandboxes, &mut heard);
}

fn put_beside(sandboxes: &Sandboxes, heard: &mut mpsc::UnboundedReceiver<Change>) {
    assert!(sandboxes.count() <= SANDBOXES_MAX);
    let mut all = Vec::new();
    while let Ok(change) = heard.try_recv() {
        all.push(change);
    }
    if !all.is_empty() {
        world::beside(all);
    }
}

fn conflist(text: &str) {
    let entry = json!({"type": conflist::TYPE, "socket": "/run/x", "timeoutSeconds": 5});
    let Ok(Some(with)) = conflist::insert(text, &entry) else { return };
    assert_eq!(conflist::insert(&with, &entry), Ok(None), "put in twice: {with}");
    let had_entry = conflist::has_entry(text);
    let without = conflist::remove(&with).expect("a conflist").expect("an entry");
    let read = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    assert!(had_entry || read(&without) == read(text), "{text} became {without}");
}
