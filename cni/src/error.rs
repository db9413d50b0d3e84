//! What a plugin says when it fails.
//!
//! In: what went wrong. Out: [`CniError`], which is the specification's error as JSON. What always holds: each error has a code of the
//! specification, or one of ours from 100 on.

use serde::Serialize;

/// The newest version of the specification.
pub const NEWEST: &str = "1.1.0";

/// Versions whose results have addresses as a list: what is chained before us says which.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", NEWEST];

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// Code 1.
    #[error("incompatible CNI version {0:?}: this plugin speaks 0.3.0 to 1.1.0")]
    Version(String),
    /// Code 2.
    #[error("unsupported value of {field}: {value}")]
    Unsupported {
        /// The key.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// Code 4.
    #[error("{name} {why}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Code 5.
    #[error("the configuration cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// Code 6.
    #[error("the configuration is no JSON of a network configuration: {0}")]
    Decode(#[from] serde_json::Error),
    /// Code 7.
    #[error("invalid network configuration: {0}")]
    Configuration(String),
    /// Code 11: the daemon is away, or does not have the pod yet.
    #[error("{0}")]
    Later(String),
    /// Code 50: the same, where it is asked for.
    #[error("{0}")]
    Unavailable(String),
    /// Code 100: CHECK found that the daemon does not have the sandbox.
    #[error("{0}")]
    NotEnforced(String),
}

impl CniError {
    /// The specification's code.
    pub const fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Unsupported { .. } => 2,
            Self::Variable { .. } => 4,
            Self::Read(_) => 5,
            Self::Decode(_) => 6,
            Self::Configuration(_) => 7,
            Self::Later(_) => 11,
            Self::Unavailable(_) => 50,
            Self::NotEnforced(_) => 100,
        }
    }

    /// What is printed.
    pub fn to_json(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Printed<'a> {
            cni_version: &'a str,
            code: u32,
            msg: String,
        }
        let printed = Printed { cni_version: version, code: self.code(), msg: self.to_string() };
        serde_json::to_string(&printed).unwrap_or_else(|_| format!("{{\"code\":{}}}", self.code()))
    }
}
