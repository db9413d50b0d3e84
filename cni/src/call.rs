//! A call of a container runtime: its variables.
//!
//! In: variables. Out: [`Command`], and the parts of a sandbox. What always holds: a variable that becomes part of anything is
//! checked first, as the specification words it.

use crate::error::CniError;
use crate::message::Attachment;

/// Bytes of a name at most: twice what Kubernetes allows.
const NAME_BYTES: usize = 512;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A sandbox begins.
    Add,
    /// Is it as it was made?
    Check,
    /// A sandbox ends.
    Del,
    /// These sandboxes are all there are.
    Gc,
    /// Can ADD be served?
    Status,
    /// Which versions?
    Version,
}

/// The variables, by name.
pub trait Variables: Fn(&str) -> Option<String> {}

impl<F: Fn(&str) -> Option<String>> Variables for F {}

fn required(variables: &impl Variables, name: &'static str) -> Result<String, CniError> {
    let value = variables(name).filter(|value| !value.is_empty());
    value.ok_or(CniError::Variable { name, why: "is missing" })
}

/// CNI_COMMAND.
pub fn command(variables: &impl Variables) -> Result<Command, CniError> {
    Ok(match required(variables, "CNI_COMMAND")?.as_str() {
        "ADD" => Command::Add,
        "CHECK" => Command::Check,
        "DEL" => Command::Del,
        "GC" => Command::Gc,
        "STATUS" => Command::Status,
        "VERSION" => Command::Version,
        _ => return Err(CniError::Variable { name: "CNI_COMMAND", why: "is no command of the specification" }),
    })
}

/// CNI_CONTAINERID and CNI_IFNAME.
pub fn attachment(variables: &impl Variables) -> Result<Attachment, CniError> {
    let container = required(variables, "CNI_CONTAINERID")?;
    let fits = container.len() <= NAME_BYTES
        && container.starts_with(|c: char| c.is_ascii_alphanumeric())
        && container.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if !fits {
        return Err(CniError::Variable { name: "CNI_CONTAINERID", why: "is no identifier" });
    }
    let interface = required(variables, "CNI_IFNAME")?;
    let fits = interface.len() <= 15
        && !matches!(interface.as_str(), "." | "..")
        && !interface.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if !fits {
        return Err(CniError::Variable { name: "CNI_IFNAME", why: "is no name of an interface" });
    }
    Ok(Attachment { container, interface })
}

/// CNI_NETNS.
pub fn netns(variables: &impl Variables) -> Result<String, CniError> {
    required(variables, "CNI_NETNS")
}

/// The pod in CNI_ARGS: namespace, name, UID. Not every sandbox is a pod's.
pub fn pod(variables: &impl Variables) -> Result<Option<(String, String, String)>, CniError> {
    let arguments = variables("CNI_ARGS").unwrap_or_default();
    let of = |name: &str| {
        let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    let (namespace, name, uid) = (of("K8S_POD_NAMESPACE"), of("K8S_POD_NAME"), of("K8S_POD_UID"));
    if [&namespace, &name, &uid].iter().any(|text| text.len() > NAME_BYTES) {
        return Err(CniError::Variable { name: "CNI_ARGS", why: "has a name that is too long" });
    }
    Ok((!namespace.is_empty() && !name.is_empty()).then_some((namespace, name, uid)))
}
