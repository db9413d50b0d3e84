//! Files of the node's CNI directories: the plugin's binary, its entry in the conflist.
//!
//! In: paths. Out: files, whole or as they were. What always holds: a file is replaced by renaming another over it, with the mode and
//! the owner of the old one; the binary is there before its entry, and goes behind it.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::conflist::{self, ConflistError, TYPE};

/// Why a file is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file.
    #[error("{}: {what}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A conflist.
    #[error("{}: {source}", path.display())]
    Conflist {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: ConflistError,
    },
    /// It was changed while it was read.
    #[error("{} changes just now", .0.display())]
    Busy(PathBuf),
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> InstallError {
    move |source| InstallError::File { path: path.to_owned(), what, source }
}

/// The plugin beside the daemon's own binary.
pub fn shipped() -> Result<PathBuf, InstallError> {
    let own = std::env::current_exe().map_err(failed(Path::new("/proc/self/exe"), "cannot be read"))?;
    Ok(own.with_file_name(TYPE))
}

/// Puts the plugin into the directory of plugins; whether it was another one or none.
pub fn binary(from: &Path, directory: &Path) -> Result<bool, InstallError> {
    let plugin = fs::read(from).map_err(failed(from, "the plugin cannot be read"))?;
    let path = directory.join(TYPE);
    let is_there = fs::metadata(&path).is_ok_and(|found| found.is_file() && found.mode() & 0o777 == 0o755);
    if is_there && fs::read(&path).is_ok_and(|found| found == plugin) {
        return Ok(false);
    }
    replace(&path, &plugin, None)?;
    Ok(true)
}

/// Takes the plugin away; whether it was there.
pub fn remove_binary(directory: &Path) -> Result<bool, InstallError> {
    let path = directory.join(TYPE);
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(&path, "cannot be removed")(error)),
    }
}

/// Puts the entry into a conflist; whether it was not there as it should be.
pub fn insert(path: &Path, entry: &Value) -> Result<bool, InstallError> {
    edit(path, |text| conflist::insert(text, entry))
}

/// Takes the entry out of a conflist; whether it was there. No conflist has none.
pub fn remove(path: &Path) -> Result<bool, InstallError> {
    match edit(path, conflist::remove) {
        Err(InstallError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        outcome => outcome,
    }
}

fn edit(path: &Path, edited: impl FnOnce(&str) -> Result<Option<String>, ConflistError>) -> Result<bool, InstallError> {
    // A link stays one: its target is replaced.
    let path = fs::canonicalize(path).map_err(failed(path, "cannot be found"))?;
    let before = fs::metadata(&path).map_err(failed(&path, "cannot be read"))?;
    let text = fs::read_to_string(&path).map_err(failed(&path, "cannot be read"))?;
    let text = edited(&text).map_err(|source| InstallError::Conflist { path: path.clone(), source })?;
    let Some(text) = text else { return Ok(false) };
    replace(&path, text.as_bytes(), Some(&before))?;
    Ok(true)
}

/// Renames a new file over the old one, if that is still what was read.
fn replace(path: &Path, content: &[u8], before: Option<&Metadata>) -> Result<(), InstallError> {
    // No runtime takes a hidden file without its ending for a configuration or a plugin.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.flatfell-{}", std::process::id()));
    let written = write(&temporary, content, before).map_err(failed(&temporary, "cannot be written"));
    let renamed = written.and_then(|()| {
        if before.is_some_and(|before| !is_same(path, before)) {
            return Err(InstallError::Busy(path.to_owned()));
        }
        fs::rename(&temporary, path).map_err(failed(path, "cannot be replaced"))
    });
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

fn write(path: &Path, content: &[u8], before: Option<&Metadata>) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    let mode = before.map_or(0o755, |before| before.mode() & 0o7777);
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    let own = file.metadata()?;
    if let Some(before) = before.filter(|before| (before.uid(), before.gid()) != (own.uid(), own.gid())) {
        fchown(&file, Some(before.uid()), Some(before.gid()))?;
    }
    file.sync_all()
}

fn is_same(path: &Path, before: &Metadata) -> bool {
    let identity = |it: &Metadata| (it.dev(), it.ino(), it.len(), it.mtime(), it.mtime_nsec());
    fs::metadata(path).is_ok_and(|now| identity(&now) == identity(before))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_conflist_keeps_its_mode_and_its_directory_gets_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("10-flannel.conflist");
        let text = "{\"plugins\": [ {\"type\": \"flannel\"} ]}\n";
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("a mode");
        let entry = json!({"type": TYPE});
        assert!(insert(&path, &entry).expect("inserted") && !insert(&path, &entry).expect("there"));
        assert_eq!(fs::metadata(&path).expect("it is there").mode() & 0o7777, 0o640);
        assert!(remove(&path).expect("removed") && !remove(&path).expect("gone"));
        assert_eq!(fs::read_to_string(&path).expect("read"), text);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
        assert!(!remove(&dir.path().join("none")).expect("nothing to remove"));
    }

    #[test]
    fn a_plugin_is_replaced_while_it_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("shipped"), dir.path().join("bin"));
        fs::create_dir(&to).expect("a directory");
        fs::copy("/bin/sleep", &from).expect("a program");
        assert!(binary(&from, &to).expect("installed") && !binary(&from, &to).expect("there"));
        let mut runs = std::process::Command::new(to.join(TYPE)).arg("9").spawn().expect("it can be run");
        fs::write(&from, "another").expect("written");
        assert!(binary(&from, &to).expect("a running program cannot be written to, but replaced"));
        runs.kill().and_then(|()| runs.wait()).expect("it ran");
        assert!(remove_binary(&to).expect("removed") && !remove_binary(&to).expect("gone"));
    }
}
