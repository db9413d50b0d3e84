//! A network configuration as a chained plugin gets it.
//!
//! In: bytes of standard input. Out: [`Conf`], with the previous result. What always holds: no more than
//! [`CONF_BYTES`] are read; what another plugin's field means is not asked.

use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{CniError, NEWEST, VERSIONS};
use crate::message::{Attachment, DIRECTORY, SOCKET};

/// Bytes of a configuration at most.
pub const CONF_BYTES: u64 = 4 * 1024 * 1024;

/// How long a pod may wait for its policy unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(5);

/// No runtime waits longer.
const LONGEST: u64 = 120;

/// What happens to a pod whose policy is not in the kernel in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnavailable {
    /// It starts, closed until the daemon knows it.
    #[default]
    Closed,
    /// It does not start; the runtime tries again.
    Fail,
}

/// What of a network configuration is of concern here.
#[derive(Debug)]
pub struct Conf {
    /// The version that is spoken.
    pub version: String,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// What happens without the daemon.
    pub on_unavailable: OnUnavailable,
    /// How long it is waited for.
    pub timeout: Duration,
    /// The previous plugin's result.
    pub previous: Option<Value>,
    /// The sandboxes there are, for GC.
    pub attachments: Option<Vec<Attachment>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    cni_version: Option<String>,
    socket: Option<PathBuf>,
    on_unavailable: Option<Value>,
    timeout_seconds: Option<Value>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    attachments: Option<Vec<Attachment>>,
    #[serde(rename = "cni.dev/attachments")]
    earlier_attachments: Option<Vec<Attachment>>,
}

/// Reads all of standard input.
pub fn read(input: impl Read) -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    input.take(CONF_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > CONF_BYTES) {
        return Err(CniError::Configuration(format!("more than {CONF_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The version that a configuration speaks, if it is one of ours; for answers to what else is wrong with it.
pub fn version(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spoken {
        cni_version: String,
    }
    let spoken = serde_json::from_slice::<Spoken>(bytes).map(|spoken| spoken.cni_version);
    spoken.ok().filter(|version| VERSIONS.contains(&version.as_str())).unwrap_or_else(|| NEWEST.to_owned())
}

impl Conf {
    /// Understands a configuration.
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        let fields: Fields = serde_json::from_slice(bytes)?;
        let version = fields.cni_version.unwrap_or_else(|| "0.1.0".to_owned());
        if !VERSIONS.contains(&version.as_str()) {
            return Err(CniError::Version(version));
        }
        let socket = fields.socket.unwrap_or_else(|| PathBuf::from(DIRECTORY).join(SOCKET));
        if !socket.is_absolute() {
            return Err(CniError::Unsupported { field: "socket", value: socket.display().to_string() });
        }
        Ok(Self {
            version,
            socket,
            on_unavailable: on_unavailable(fields.on_unavailable)?,
            timeout: timeout(fields.timeout_seconds)?,
            previous: fields.prev_result,
            attachments: fields.attachments.or(fields.earlier_attachments),
        })
    }
}

fn on_unavailable(value: Option<Value>) -> Result<OnUnavailable, CniError> {
    let Some(value) = value else { return Ok(OnUnavailable::default()) };
    let unsupported = || CniError::Unsupported { field: "onUnavailable", value: value.to_string() };
    serde_json::from_value(value.clone()).map_err(|_| unsupported())
}

fn timeout(value: Option<Value>) -> Result<Duration, CniError> {
    let Some(value) = value else { return Ok(TIMEOUT) };
    let seconds = value.as_u64().filter(|seconds| (1..=LONGEST).contains(seconds));
    let unsupported = || CniError::Unsupported { field: "timeoutSeconds", value: value.to_string() };
    seconds.map(Duration::from_secs).ok_or_else(unsupported)
}

/// What of a result is of concern here: versions 0.3.0 to 1.1.0 agree on it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// The sandbox's addresses.
    pub addresses: Vec<IpAddr>,
    /// The link-layer address of the sandbox's side.
    pub mac: Option<String>,
    /// The node's side of its link.
    pub host_interface: Option<String>,
}

impl Previous {
    /// Understands a result for this interface of the sandbox. Addresses of the node's own interfaces (a bridge's) are not the sandbox's.
    pub fn parse(result: &Value, sandbox_interface: &str) -> Result<Self, CniError> {
        #[derive(Deserialize)]
        struct Fields {
            #[serde(default)]
            interfaces: Vec<Interface>,
            #[serde(default)]
            ips: Vec<Ip>,
        }
        #[derive(Deserialize)]
        struct Interface {
            #[serde(default)]
            name: String,
            #[serde(default)]
            mac: String,
            #[serde(default)]
            sandbox: String,
        }
        #[derive(Deserialize)]
        struct Ip {
            address: String,
            interface: Option<i64>,
        }
        let wrong = |why: String| CniError::Configuration(format!("prevResult: {why}"));
        let fields: Fields = Fields::deserialize(result).map_err(|error| wrong(error.to_string()))?;
        let interface = |ip: &Ip| {
            let place = ip.interface.and_then(|place| usize::try_from(place).ok());
            place.and_then(|place| fields.interfaces.get(place))
        };
        let mut addresses = Vec::new();
        for ip in &fields.ips {
            if interface(ip).is_some_and(|interface| interface.sandbox.is_empty()) {
                continue;
            }
            let address = ip.address.split('/').next().and_then(|text| text.parse().ok());
            addresses.push(address.ok_or_else(|| wrong(format!("{:?} is no address", ip.address)))?);
        }
        // The bridge plugin names the bridge, the node's side of the link, then the pod's.
        let host = fields.interfaces.iter().rev().find(|interface| interface.sandbox.is_empty());
        let is_own = |interface: &&Interface| !interface.sandbox.is_empty() && interface.name == sandbox_interface;
        let own = fields.interfaces.iter().find(is_own).filter(|interface| !interface.mac.is_empty());
        let mac = own.map(|interface| interface.mac.clone());
        Ok(Self { addresses, mac, host_interface: host.map(|interface| interface.name.clone()) })
    }
}
