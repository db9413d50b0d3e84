//! What is known of the objects of one resource, and what of it changes.
//!
//! In: pruned objects, from a list or from a watch. Out: [`News`] for the index, and [`Findings`] about what is wrong.
//! What always holds: an object that is not newer than the one that is known changes nothing; a list counts when it is
//! complete, and then what it does not have is deleted; an object that cannot be understood keeps its last good state if
//! it is the same one (UID), and is named as unknown if it never had any.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use flatfell_rules::index::Change;
use flatfell_rules::object::ObjectName;
use flatfell_rules::parse::{self, Fault, Parsed, Refusal};
use serde_json::Value;

use super::node::OwnNode;
use super::resource::Resource;
use crate::manifests::Severity;
use crate::state::Complaint;

/// One thing that changed.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// For the index.
    Change(Change),
    /// The own node, if there is one.
    Node(Option<OwnNode>),
}

/// What is wrong with the objects of a resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// Everything that is wrong.
    pub problems: Vec<Complaint>,
    /// What never had a meaning.
    pub unknown: Vec<String>,
    /// Policies that were refused.
    pub refused: Vec<ObjectName>,
}

/// What is known of the objects of a resource.
#[derive(Debug)]
pub struct Ledger {
    resource: Resource,
    /// By `namespace/name`.
    known: BTreeMap<Box<str>, Entry>,
    /// Of those with something wrong, what.
    faulty: BTreeMap<Box<str>, Vec<Complaint>>,
    refused: BTreeSet<Box<str>>,
    /// The newest version that was heard of.
    newest: u64,
    /// The number of the list that is being read or was read last.
    list: u32,
    /// Whether a list was complete once.
    is_listed: bool,
    /// Whether the findings may have changed since they were last asked for.
    is_dirty: bool,
}

/// A known object.
#[derive(Debug)]
struct Entry {
    /// A hash of the UID: what it tells apart are an object and its successor.
    uid: u64,
    version: u64,
    standing: Standing,
    /// The number of the last list that had it.
    list: u32,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The index has it as the server has it.
    Understood,
    /// The index has an earlier state of it.
    Kept,
    /// The index never had it.
    Unknown,
}

/// What a list that is not complete yet has of new.
#[derive(Debug)]
pub struct Draft {
    puts: Vec<Put>,
}

/// What an object does when it counts.
#[derive(Debug)]
struct Put {
    name: Box<str>,
    entry: Entry,
    news: Option<News>,
    complaints: Vec<Complaint>,
    is_refused: bool,
}

/// Name, UID and version of an object; the version is 0 where it cannot be compared.
struct Identity {
    name: Box<str>,
    uid: u64,
    version: u64,
}

/// Versions that are numbers compare; others are taken as they come.
pub fn version(metadata: Option<&Value>) -> u64 {
    let text = metadata.and_then(|metadata| metadata.get("resourceVersion")).and_then(Value::as_str);
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl Ledger {
    /// One that knows nothing.
    pub fn new(resource: Resource) -> Self {
        Self {
            resource,
            known: BTreeMap::new(),
            faulty: BTreeMap::new(),
            refused: BTreeSet::new(),
            newest: 0,
            list: 0,
            is_listed: false,
            is_dirty: true,
        }
    }

    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// The newest version that was heard of.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// A version was heard of.
    pub fn note_version(&mut self, version: u64) {
        self.newest = self.newest.max(version);
    }

    /// An object appeared or changed. `None` in the result's `Err` names what has no name.
    pub fn put(&mut self, object: &Value) -> Result<Option<News>, Nameless> {
        let identity = self.identity(object)?;
        self.note_version(identity.version);
        if self.known.get(&identity.name).is_some_and(|entry| !is_newer(identity.version, entry.version)) {
            return Ok(None);
        }
        let put = self.judge(identity, object);
        Ok(self.commit(put))
    }

    /// An object is gone.
    pub fn delete(&mut self, object: &Value) -> Result<Option<News>, Nameless> {
        let Identity { name, version, .. } = self.identity(object)?;
        self.note_version(version);
        let is_older = |entry: &Entry| version != 0 && version < entry.version;
        if self.known.get(&name).is_none_or(is_older) {
            return Ok(None);
        }
        Ok(self.remove(&name))
    }

    /// A list begins.
    pub fn begin_list(&mut self) -> Draft {
        self.list = self.list.wrapping_add(1);
        Draft { puts: Vec::new() }
    }

    /// An object of a list that is not complete yet. Of the first list each counts at once: nothing is in force before it
    /// is complete, and a draft of it would be held twice.
    pub fn draft(&mut self, draft: &mut Draft, object: &Value) -> Result<Option<News>, Nameless> {
        let identity = self.identity(object)?;
        let is_same = |entry: &Entry| entry.uid == identity.uid && entry.version == identity.version;
        if let Some(entry) = self.known.get_mut(&identity.name) {
            entry.list = self.list;
            if identity.version != 0 && is_same(entry) {
                return Ok(None);
            }
        }
        let put = self.judge(identity, object);
        if !self.is_listed {
            return Ok(self.commit(put));
        }
        draft.puts.push(put);
        Ok(None)
    }

    /// The list is complete: it counts, as of this version.
    pub fn complete(&mut self, draft: Draft, version: u64) -> Vec<News> {
        self.is_listed = true;
        let mut news: Vec<News> = draft.puts.into_iter().filter_map(|put| self.commit(put)).collect();
        let names = self.known.iter().filter(|(_, entry)| entry.list != self.list).map(|(name, _)| name.clone());
        let missing: Vec<Box<str>> = names.collect();
        news.extend(missing.iter().filter_map(|name| self.remove(name)));
        // Not the greater of the two: a server that was restored counts from an earlier version.
        self.newest = version;
        if self.resource == Resource::Node && self.known.is_empty() {
            news.push(News::Node(None));
        }
        news
    }

    /// What is wrong, if that may have changed since it was asked for last.
    pub fn new_findings(&mut self) -> Option<Findings> {
        std::mem::take(&mut self.is_dirty).then(|| Findings {
            problems: self.faulty.values().flatten().cloned().collect(),
            unknown: self
                .known
                .iter()
                .filter(|(_, entry)| entry.standing == Standing::Unknown)
                .map(|(name, _)| format!("{} {name} was never understood", self.resource.kind()))
                .collect(),
            refused: self.refused.iter().map(|name| object_name(name)).collect(),
        })
    }

    fn identity(&self, object: &Value) -> Result<Identity, Nameless> {
        let metadata = object.get("metadata");
        let name = match self.resource {
            Resource::Pods | Resource::Policies => parse::name_of(object).map(|name| name.to_string().into()),
            Resource::Namespaces | Resource::Node => {
                let name = metadata.and_then(|metadata| metadata.get("name")).and_then(Value::as_str);
                name.map(Box::from)
            }
        };
        let uid = metadata.and_then(|metadata| metadata.get("uid")).and_then(Value::as_str).unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        uid.hash(&mut hasher);
        Ok(Identity { name: name.ok_or(Nameless)?, uid: hasher.finish(), version: version(metadata) })
    }

    fn judge(&self, Identity { name, uid, version }: Identity, object: &Value) -> Put {
        let old = self.known.get(&name);
        let had_meaning = old.filter(|old| old.standing != Standing::Unknown);
        let meaning = Meaning::of(self.resource, object);
        let standing = match (&meaning.news, had_meaning) {
            (Some(_), _) => Standing::Understood,
            (None, Some(old)) if old.uid == uid => Standing::Kept,
            (None, _) => Standing::Unknown,
        };
        let news = match standing {
            Standing::Unknown => had_meaning.and_then(|_| deletion(self.resource, &name)),
            Standing::Understood | Standing::Kept => meaning.news,
        };
        let consequence = if standing == Standing::Kept { "; its last good state stays in force" } else { "" };
        let complain = |(severity, fault): (Severity, Fault)| Complaint {
            severity,
            text: format!("{} {name}: {fault}{consequence}", self.resource.kind()),
        };
        let complaints = meaning.faults.into_iter().map(complain).collect();
        Put {
            entry: Entry { uid, version, standing, list: self.list },
            news,
            complaints,
            is_refused: meaning.is_refused,
            name,
        }
    }

    fn commit(&mut self, put: Put) -> Option<News> {
        let Put { name, entry, news, complaints, is_refused } = put;
        let was_unknown = self.known.get(&name).is_some_and(|old| old.standing == Standing::Unknown);
        self.is_dirty |= !complaints.is_empty() || was_unknown || self.faulty.contains_key(&name);
        if is_refused {
            self.refused.insert(name.clone());
        } else {
            self.refused.remove(&name);
        }
        if complaints.is_empty() {
            self.faulty.remove(&name);
        } else {
            self.faulty.insert(name.clone(), complaints);
        }
        self.known.insert(name, entry);
        news
    }

    fn remove(&mut self, name: &str) -> Option<News> {
        let entry = self.known.remove(name)?;
        self.is_dirty |= self.faulty.remove(name).is_some() || entry.standing == Standing::Unknown;
        self.refused.remove(name);
        if entry.standing == Standing::Unknown { None } else { deletion(self.resource, name) }
    }
}

/// An object without a name: nothing can be said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an object without metadata.name")]
pub struct Nameless;

/// Whether a version says more than one that is known; one that cannot be compared is taken as it comes.
fn is_newer(version: u64, known: u64) -> bool {
    version == 0 || known == 0 || version > known
}

/// A name as it is shown, taken apart; no name has a slash.
fn object_name(shown: &str) -> ObjectName {
    let (namespace, name) = shown.split_once('/').unwrap_or_default();
    ObjectName::new(namespace, name)
}

fn deletion(resource: Resource, shown: &str) -> Option<News> {
    Some(match resource {
        Resource::Pods => News::Change(Change::DeletePod(object_name(shown))),
        Resource::Namespaces => News::Change(Change::DeleteNamespace(shown.to_owned())),
        Resource::Policies => News::Change(Change::DeletePolicy(object_name(shown))),
        Resource::Node => News::Node(None),
    })
}

/// What an object means, and what is wrong with it.
struct Meaning {
    news: Option<News>,
    faults: Vec<(Severity, Fault)>,
    is_refused: bool,
}

impl Meaning {
    fn of(resource: Resource, object: &Value) -> Self {
        match resource {
            Resource::Pods => Self::parsed(parse::pod(object), Change::UpsertPod),
            Resource::Namespaces => Self::parsed(parse::namespace(object), Change::UpsertNamespace),
            Resource::Policies => {
                let parsed = parse::policy(object);
                let refusal = parsed.as_ref().ok().and_then(|parsed| parsed.value.refusal.clone());
                let mut meaning = Self::parsed(parsed, Change::UpsertPolicy);
                meaning.is_refused = refusal.is_some();
                let faults = refusal.map(|refusal| refusal.faults).unwrap_or_default();
                meaning.faults.splice(0..0, faults.into_iter().map(|fault| (Severity::Error, fault)));
                meaning
            }
            Resource::Node => {
                let node = News::Node(Some(OwnNode::of(object)));
                Self { news: Some(node), faults: Vec::new(), is_refused: false }
            }
        }
    }

    fn parsed<T>(parsed: Result<Parsed<T>, Refusal>, change: impl FnOnce(T) -> Change) -> Self {
        let faulty = |severity| move |fault| (severity, fault);
        match parsed {
            Ok(Parsed { value, warnings }) => Self {
                news: Some(News::Change(change(value))),
                faults: warnings.into_iter().map(faulty(Severity::Warning)).collect(),
                is_refused: false,
            },
            Err(refusal) => Self {
                news: None,
                faults: refusal.faults.into_iter().map(faulty(Severity::Error)).collect(),
                is_refused: false,
            },
        }
    }
}
