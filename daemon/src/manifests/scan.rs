//! Which manifest files a directory holds, without opening one.
//!
//! In: a directory. Out: each file's path (below the root, links followed, as ConfigMap volumes need it) with a stamp
//! that changes when the file does. What always holds: names that begin with a dot are left out, a link that leads back
//! up does not loop, a directory that cannot be listed is named instead of being taken for empty.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What changes when a file's content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of a file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What to look at again. Paths begin with the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The whole directory, by stamps.
    pub all: bool,
    /// These files, whatever their stamps say (two writes within a tick of the file system's clock look the same).
    pub files: BTreeSet<PathBuf>,
    /// Files that a writer has open: left as they are.
    pub busy: BTreeSet<PathBuf>,
}

impl Scope {
    /// The whole directory.
    pub fn everything() -> Self {
        Self { all: true, ..Self::default() }
    }
}

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Scan {
    /// The manifests and their stamps.
    pub files: BTreeMap<PathBuf, Stamp>,
    /// Directories (or files) that could not be looked at, and why.
    pub unreadable: BTreeMap<PathBuf, io::Error>,
}

/// Whether a path could be a manifest by its name.
pub fn is_manifest(path: &Path) -> bool {
    let is_text = path
        .extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known)));
    is_text && !is_hidden(path)
}

/// Whether a path's last name begins with a dot.
pub fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Looks at everything below `root`, which may be a single file.
pub fn scan(root: &Path) -> Scan {
    let mut scan = Scan::default();
    // In order, so that of two links to one directory it is always the same one that counts.
    let mut waiting = BTreeSet::from([root.to_path_buf()]);
    let mut visited = HashSet::new();
    while let Some(path) = waiting.pop_first() {
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                if visited.insert((metadata.dev(), metadata.ino())) {
                    list(&path, &mut scan, &mut waiting);
                }
            }
            Ok(metadata) => scan.file(path, &metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path != root => {}
            Err(error) => {
                // A root that is gone is no empty directory.
                scan.unreadable.insert(path, error);
            }
        }
    }
    scan
}

impl Scan {
    fn file(&mut self, path: PathBuf, metadata: &Metadata) {
        if metadata.is_file() {
            self.files.insert(path, Stamp::of(metadata));
        }
    }

    /// An entry of a directory: a manifest, something without use, or a directory to look into.
    fn entry(&mut self, path: PathBuf, waiting: &mut BTreeSet<PathBuf>) {
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                waiting.insert(path);
            }
            Ok(metadata) if is_manifest(&path) => self.file(path, &metadata),
            Ok(_) => {}
            // Gone since it was listed, or a link to nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.unreadable.insert(path, error);
            }
        }
    }
}

fn list(directory: &Path, scan: &mut Scan, waiting: &mut BTreeSet<PathBuf>) {
    let listed = fs::read_dir(directory).and_then(|entries| {
        for entry in entries {
            let path = entry?.path();
            if !is_hidden(&path) {
                scan.entry(path, waiting);
            }
        }
        Ok(())
    });
    if let Err(error) = listed {
        scan.unreadable.insert(directory.to_path_buf(), error);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(root: &Path) -> Vec<String> {
        scan(root)
            .files
            .keys()
            .map(|path| path.strip_prefix(root).expect("below the root").display().to_string())
            .collect()
    }

    #[test]
    fn only_manifests_count_in_every_subdirectory() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir_all(dir.path().join("sub/.hidden")).expect("subdirectory");
        for name in [
            "a.yaml",
            "b.YML",
            "c.json",
            "d.txt",
            ".e.yaml",
            "f.yaml~",
            ".f.yaml.swp",
            "sub/g.yaml",
            "sub/.hidden/h.yaml",
        ] {
            fs::write(dir.path().join(name), "x").expect("file");
        }
        assert_eq!(names(dir.path()), ["a.yaml", "b.YML", "c.json", "sub/g.yaml"]);
    }

    #[test]
    fn a_volume_of_a_config_map_is_seen_through_its_links() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir(dir.path().join("..2026_1")).expect("version");
        fs::write(dir.path().join("..2026_1/a.yaml"), "x").expect("file");
        symlink("..2026_1", dir.path().join("..data")).expect("link");
        symlink("..data/a.yaml", dir.path().join("a.yaml")).expect("link");
        assert_eq!(names(dir.path()), ["a.yaml"]);
    }

    #[test]
    fn links_to_above_and_to_nothing_end() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir(dir.path().join("sub")).expect("subdirectory");
        symlink("..", dir.path().join("sub/up")).expect("link");
        symlink("nothing", dir.path().join("gone.yaml")).expect("link");
        fs::write(dir.path().join("sub/a.yaml"), "x").expect("file");
        assert_eq!(names(dir.path()), ["sub/a.yaml"]);
    }

    #[test]
    fn a_root_that_is_gone_is_no_empty_directory() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(scan(&dir.path().join("gone")).unreadable.len(), 1);
    }
}
