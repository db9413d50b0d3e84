//! The state of a directory of manifests, and what changes in it.
//!
//! In: a root, and a [`Scope`] that says what to look at again. Out: [`Update`]s against what was there before, and every
//! [`Problem`] that stands. What always holds: the work of a refresh grows with the files that changed (and one look at
//! the stamps of all for [`Scope::everything`]); a file or a directory that cannot be read keeps its last good content.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::duplicates::{self, Claims};
use super::object::{Key, Object};
use super::problem::{Place, Problem, Severity};
use super::read::{self, Content};
use super::scan::{self, Scope, Stamp};

/// Largest file that is read; an API server's whole answer for a large cluster fits.
const FILE_MAX: u64 = 256 * 1024 * 1024;

/// A difference to what was there before.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// An object appeared or changed.
    Put(Arc<Object>),
    /// An object is gone.
    Remove(Key),
}

/// What a refresh found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Refresh {
    /// What changed, namespaces first.
    pub updates: Vec<Update>,
    /// Problems that were not there before.
    pub appeared: Vec<Problem>,
    /// Problems that are gone.
    pub solved: Vec<Problem>,
}

/// A file that was looked at.
#[derive(Debug)]
struct File {
    stamp: Option<Stamp>,
    content: Content,
    /// Why what the file says now is not what is in use.
    failure: Option<Problem>,
    /// Whether it was ever read.
    known: bool,
}

/// A directory of manifests.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    unreadable: BTreeMap<PathBuf, Problem>,
    claims: BTreeMap<Key, Claims>,
    /// Keys that more than one object claims.
    contested: BTreeSet<Key>,
    current: BTreeMap<Key, Vec<Arc<Object>>>,
    problems: BTreeSet<Problem>,
}

impl Directory {
    /// A directory that was not looked at yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            files: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            claims: BTreeMap::new(),
            contested: BTreeSet::new(),
            current: BTreeMap::new(),
            problems: BTreeSet::new(),
        }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How many manifest files there are.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Everything that is wrong now, by place.
    pub fn problems(&self) -> &BTreeSet<Problem> {
        &self.problems
    }

    /// The objects that count now.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.current.values().flatten()
    }

    /// What is not known at all, because it could never be read: why the state is not complete.
    pub fn unknown(&self) -> Vec<String> {
        let never = self.files.values().filter(|file| !file.known).filter_map(|file| file.failure.as_ref());
        let refused = self.files.iter().flat_map(|(path, file)| {
            let without = file.content.objects.iter().filter(|found| found.object.is_none());
            without.map(|found| {
                let place = Place { file: path.clone(), line: found.line };
                format!("{place}: {} {} was never understood", found.key.kind.word(), found.key)
            })
        });
        never.chain(self.unreadable.values()).map(Problem::to_string).chain(refused).collect()
    }

    /// Looks again, and says what changed.
    pub fn refresh(&mut self, scope: &Scope) -> Refresh {
        let mut touched = BTreeSet::new();
        let is_simple = |path: &PathBuf| {
            let is_file = || scan::is_manifest(path) && fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
            self.files.contains_key(path) || (path.starts_with(&self.root) && is_file())
        };
        if scope.all || !scope.files.iter().all(is_simple) {
            self.look_at_all(scope, &mut touched);
        } else {
            for path in scope.files.difference(&scope.busy) {
                self.look_at(path, &mut touched);
            }
        }
        let updates = self.settle(&touched);
        let problems = self.collect_problems();
        let refresh = Refresh {
            updates,
            appeared: problems.difference(&self.problems).cloned().collect(),
            solved: self.problems.difference(&problems).cloned().collect(),
        };
        self.problems = problems;
        refresh
    }

    fn look_at_all(&mut self, scope: &Scope, touched: &mut BTreeSet<Key>) {
        let found = scan::scan(&self.root);
        let gone: Vec<PathBuf> = self
            .files
            .keys()
            .filter(|path| !found.files.contains_key(*path))
            // What cannot be looked at is not gone.
            .filter(|path| !path.ancestors().any(|parent| found.unreadable.contains_key(parent)))
            .cloned()
            .collect();
        for path in gone {
            self.forget(&path, touched);
        }
        for (path, stamp) in &found.files {
            let is_same = self.files.get(path).is_some_and(|file| file.stamp == Some(*stamp));
            if !scope.busy.contains(path) && (scope.files.contains(path) || !is_same) {
                self.look_at(path, touched);
            }
        }
        self.unreadable = found
            .unreadable
            .into_iter()
            .map(|(path, error)| {
                let text = format!("cannot be looked at: {error}; what was known of it stays");
                (path.clone(), Problem::new(Severity::Error, path, 0, text))
            })
            .collect();
    }

    fn look_at(&mut self, path: &Path, touched: &mut BTreeSet<Key>) {
        // The stamp is taken before reading: a write in between makes the next stamp differ.
        match fs::metadata(path) {
            Ok(metadata) => {
                let read = load(path).and_then(|text| {
                    read::read(path, &text).map_err(|error| {
                        Problem::new(Severity::Error, path.to_path_buf(), error.line, error.to_string())
                    })
                });
                self.take_in(path, Stamp::of(&metadata), read, touched);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.forget(path, touched),
            Err(error) => self.fail(path, None, format!("cannot be read: {error}")),
        }
    }

    fn take_in(&mut self, path: &Path, stamp: Stamp, read: Result<Content, Problem>, touched: &mut BTreeSet<Key>) {
        let old = self.files.get(path);
        let had_objects = old.is_some_and(|file| !file.content.objects.is_empty());
        match read {
            Ok(content) if had_objects && content == Content::default() && is_blank(path) => {
                self.fail(path, Some(stamp), "is empty, which looks half-written".to_owned());
            }
            Ok(mut content) => {
                if let Some(old) = old {
                    keep_last_good(&mut content, &old.content);
                }
                self.withdraw(path, touched);
                self.claim(path, &content, touched);
                self.files.insert(path.to_path_buf(), File { stamp: Some(stamp), content, failure: None, known: true });
            }
            Err(problem) => self.fail_with(path, Some(stamp), problem),
        }
    }

    fn fail(&mut self, path: &Path, stamp: Option<Stamp>, text: String) {
        self.fail_with(path, stamp, Problem::new(Severity::Error, path.to_path_buf(), 0, text));
    }

    fn fail_with(&mut self, path: &Path, stamp: Option<Stamp>, mut problem: Problem) {
        let file = self.files.entry(path.to_path_buf()).or_insert_with(|| File {
            stamp,
            content: Content::default(),
            failure: None,
            known: false,
        });
        problem.text.push_str(if file.known {
            "; its last good content stays in use"
        } else {
            "; its objects are unknown"
        });
        file.stamp = stamp;
        file.failure = Some(problem);
    }

    fn forget(&mut self, path: &Path, touched: &mut BTreeSet<Key>) {
        self.withdraw(path, touched);
        self.files.remove(path);
    }

    fn withdraw(&mut self, path: &Path, touched: &mut BTreeSet<Key>) {
        let Some(file) = self.files.get(path) else {
            return;
        };
        for (number, found) in file.content.objects.iter().enumerate() {
            let place = Place { file: path.to_path_buf(), line: found.line };
            if let Some(claims) = self.claims.get_mut(&found.key) {
                claims.remove(&(place, number));
            }
            touched.insert(found.key.clone());
        }
    }

    fn claim(&mut self, path: &Path, content: &Content, touched: &mut BTreeSet<Key>) {
        for (number, found) in content.objects.iter().enumerate() {
            if let Some(object) = &found.object {
                let place = Place { file: path.to_path_buf(), line: found.line };
                self.claims.entry(found.key.clone()).or_default().insert((place, number), Arc::clone(object));
            }
            touched.insert(found.key.clone());
        }
    }

    /// Decides what counts for the keys that were touched.
    fn settle(&mut self, touched: &BTreeSet<Key>) -> Vec<Update> {
        let mut updates = Vec::new();
        for key in touched {
            let claims = self.claims.get(key);
            if claims.is_some_and(|claims| claims.len() > 1) {
                self.contested.insert(key.clone());
            } else {
                self.contested.remove(key);
            }
            let new = claims.map(duplicates::resolve).unwrap_or_default();
            let old = self.current.remove(key).unwrap_or_default();
            difference(&old, &new, &mut updates);
            if new.is_empty() {
                self.claims.remove(key);
            } else {
                self.current.insert(key.clone(), new);
            }
        }
        updates
    }

    fn collect_problems(&self) -> BTreeSet<Problem> {
        let mut problems: BTreeSet<Problem> = self.unreadable.values().cloned().collect();
        for file in self.files.values() {
            problems.extend(file.failure.iter().chain(&file.content.problems).cloned());
        }
        for key in &self.contested {
            problems.extend(self.claims.get(key).map(|claims| duplicates::problems(key, claims)).unwrap_or_default());
        }
        problems
    }
}

/// What leads from the old objects of a key to the new ones.
fn difference(old: &[Arc<Object>], new: &[Arc<Object>], updates: &mut Vec<Update>) {
    let gone = old.iter().map(|object| object.key()).filter(|key| !new.iter().any(|object| object.key() == *key));
    updates.extend(gone.map(Update::Remove));
    updates.extend(new.iter().filter(|object| !old.contains(object)).map(Arc::clone).map(Update::Put));
}

/// An object that is refused now stays as it was when it was last understood.
fn keep_last_good(content: &mut Content, old: &Content) {
    let refused: Vec<usize> =
        (0..content.objects.len()).filter(|index| content.objects[*index].object.is_none()).collect();
    for index in refused {
        let key = content.objects[index].key.clone();
        let good = old.objects.iter().find(|found| found.key == key).and_then(|found| found.object.clone());
        if good.is_some() {
            content.objects[index].object = good;
            let name = key.to_string();
            for problem in content.problems.iter_mut().filter(|problem| problem.object == name) {
                problem.text.push_str("; its last good state stays in use");
            }
        }
    }
}

fn is_blank(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0)
}

fn load(path: &Path) -> Result<String, Problem> {
    let problem = |text: String| Problem::new(Severity::Error, path.to_path_buf(), 0, text);
    let file = fs::File::open(path).map_err(|error| problem(format!("cannot be read: {error}")))?;
    let mut bytes = Vec::new();
    // One byte more than the limit tells a file of that size from a larger one.
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|error| problem(format!("cannot be read: {error}")))?;
    if u64::try_from(bytes.len()).map_or(true, |length| length > FILE_MAX) {
        return Err(problem(format!("is larger than {} MiB", FILE_MAX / 1024 / 1024)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        Problem::new(Severity::Error, path.to_path_buf(), line, "not UTF-8 text")
    })
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
