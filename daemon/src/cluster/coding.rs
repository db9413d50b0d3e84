//! What answers of the API server are written in.
//!
//! In: headers and bytes of an answer. Out: what is asked for, and pruned objects. What always holds: an answer is read as
//! what it says it is; policies are asked for as JSON alone, where a field that nobody knows is seen.

use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use serde_json::Value;

use super::protobuf::{self, ProtobufError};
use super::prune;
use super::resource::{Resource, STATUS};

/// A way to write objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Text, an event on each line.
    Json,
    /// Bytes, before each event its length.
    Protobuf,
}

/// Why an answer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CodingError {
    /// It says that it is JSON, or nothing.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It says that it is protobuf.
    #[error(transparent)]
    Protobuf(#[from] ProtobufError),
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

impl Coding {
    /// What is asked for, the best first: protobuf costs the server and this daemon a fraction.
    pub fn accepted(resource: Resource) -> &'static str {
        match resource {
            Resource::Pods | Resource::Namespaces => "application/vnd.kubernetes.protobuf, application/json",
            Resource::Policies | Resource::Node => "application/json",
        }
    }

    /// What an answer says it is.
    pub fn of(headers: &HeaderMap) -> Self {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if kind.eq_ignore_ascii_case(PROTOBUF) { Self::Protobuf } else { Self::Json }
    }

    /// An event of a watch.
    pub fn event(self, bytes: &[u8], resource: Resource) -> Result<Value, CodingError> {
        Ok(match self {
            Self::Json => prune::decode(bytes, resource.event())?,
            Self::Protobuf => protobuf::event(bytes, resource.object())?,
        })
    }

    /// A page of a list.
    pub fn page(self, bytes: &[u8], resource: Resource) -> Result<Value, CodingError> {
        Ok(match self {
            Self::Json => prune::decode(bytes, resource.page())?,
            Self::Protobuf => protobuf::page(bytes, resource.page())?,
        })
    }

    /// What says what is wrong.
    pub fn status(self, bytes: &[u8]) -> Result<Value, CodingError> {
        Ok(match self {
            Self::Json => prune::decode(bytes, STATUS)?,
            Self::Protobuf => protobuf::object(bytes, STATUS)?,
        })
    }
}
