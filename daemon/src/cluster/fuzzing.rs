//! A door for the fuzzers: answers without a server.
//!
//! In: the body of an answer. Out: what becomes of it in the ledger. What always holds: nothing is read here in another way than in a session.

use std::time::Duration;

use flatfell_rules::index::Change;
use hyper::Response;
use hyper::header::CONTENT_TYPE;
use kube::client::Body;
use serde_json::Value;

use super::follow::{Event, items, read_event, read_page};
use super::ledger::{Ledger, News};
use super::lines::Lines;
use super::resource::Resource;

/// Nobody waits for what is here already.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer to a question about one resource.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// Which.
    pub resource: Resource,
    /// Whether it says that it is protobuf.
    pub is_protobuf: bool,
    /// Whether it is a list and no watch.
    pub is_list: bool,
}

impl Answered {
    /// What its body changes in the index of one that knows nothing, up to the first thing that ends it.
    pub async fn changes(self, body: &[u8]) -> Vec<Change> {
        let kind = if self.is_protobuf { "application/vnd.kubernetes.protobuf" } else { "application/json" };
        let Ok(response) = Response::builder().header(CONTENT_TYPE, kind).body(Body::from(body.to_vec())) else {
            return Vec::new();
        };
        let lines = Lines::new("fuzz", response);
        let mut ledger = Ledger::new(self.resource);
        let news =
            if self.is_list { self.list(lines, &mut ledger).await } else { self.watch(lines, &mut ledger).await };
        ledger.new_findings();
        let change = |news| match news {
            News::Change(change) => Some(change),
            News::Node(_) => None,
        };
        news.into_iter().filter_map(change).collect()
    }

    async fn list(self, mut lines: Lines, ledger: &mut Ledger) -> Vec<News> {
        let mut news = Vec::new();
        let Ok(text) = lines.all(PATIENCE).await else { return news };
        let Ok(page) = read_page(self.resource, lines.coding(), &text) else { return news };
        let mut draft = ledger.begin_list();
        for item in items(&page).unwrap_or_default() {
            match ledger.draft(&mut draft, item) {
                Ok(one) => news.extend(one),
                Err(_) => return news,
            }
        }
        news.extend(ledger.complete(draft, super::ledger::version(page.get("metadata"))));
        news
    }

    async fn watch(self, mut lines: Lines, ledger: &mut Ledger) -> Vec<News> {
        let mut news = Vec::new();
        while let Ok(Ok(Some(line))) = lines.next_within(PATIENCE).await {
            let changed = match read_event(self.resource, lines.coding(), &line, false) {
                Ok(Event::Put { object, .. }) => ledger.put(&object),
                Ok(Event::Delete(object)) => ledger.delete(&object),
                Ok(Event::Bookmark { metadata, .. }) => {
                    ledger.note_version(super::ledger::version(Some(&metadata)));
                    Ok(None)
                }
                Err(_) => return news,
            };
            match changed {
                Ok(changed) => news.extend(changed),
                Err(_) => return news,
            }
        }
        news
    }
}

/// What the other answers say: that of a status, and a time.
pub fn status(is_protobuf: bool, body: &[u8]) {
    let coding = if is_protobuf { super::coding::Coding::Protobuf } else { super::coding::Coding::Json };
    let status: Value = coding.status(body).unwrap_or_default();
    let answer = super::failure::Answer::of(&status, 500);
    let _ = super::failure::Failure::of_status(Resource::Pods, "watch", true, &answer).to_string();
    let _ = std::str::from_utf8(body).map(super::arrival::timestamp);
}
