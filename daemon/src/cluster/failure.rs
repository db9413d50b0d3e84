//! What goes wrong between this daemon and the API server, and what to do about it.
//!
//! In: errors of the client, statuses the server answers with. Out: a [`Failure`] that prints with advice and has a word
//! for metrics. What always holds: the words are a closed set; a failure never changes what is in force.

use std::error::Error;
use std::time::Duration;

use serde_json::Value;

use super::resource::Resource;

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection, or it broke.
    #[error("the API server at {server} cannot be reached: {why}{}", advice(why))]
    Unreachable {
        /// Its address.
        server: String,
        /// The chain of causes.
        why: String,
    },
    /// It does not know who asks.
    #[error(
        "the API server does not accept the credentials (401: {0}): has the token or the client certificate expired, or \
         is it another cluster's?"
    )]
    Unauthorized(String),
    /// It knows who asks and does not allow it.
    #[error(
        "the API server does not allow {verb} of {resource} (403: {message}): a ClusterRole with the verbs list and watch \
         of {resource} is missing, or its binding"
    )]
    Forbidden {
        /// What was asked for.
        verb: &'static str,
        /// Of which resource.
        resource: &'static str,
        /// The server's words.
        message: String,
    },
    /// It no longer has what happened since.
    #[error("the API server no longer has the changes since the last one ({0}): everything is listed again")]
    Gone(String),
    /// It cannot send a list as a stream.
    #[error("the API server refuses to stream lists ({0}): they are read in pages")]
    StreamRefused(String),
    /// It answers with another error.
    #[error("the API server answers {code}: {message}")]
    Answer {
        /// The HTTP status.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// It says what no API server says.
    #[error("the API server says what cannot be understood ({0}): is it one? Everything is listed again")]
    Garbage(String),
    /// It says nothing.
    #[error("the API server is connected and has said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    /// It ends each watch at once.
    #[error("the API server ends the watch at once, without a word")]
    Ended,
    /// It lists a state that is older than what is known.
    #[error(
        "the API server lists an older state ({listed}) than the one that is known ({known}): it may lag behind; if it \
         was restored from a backup, this state counts in a moment"
    )]
    Stale {
        /// The version of its list.
        listed: u64,
        /// The version that is known.
        known: u64,
    },
}

impl Failure {
    /// Every word that [`Failure::word`] gives.
    pub const WORDS: [&'static str; 10] = [
        "unreachable",
        "unauthorized",
        "forbidden",
        "gone",
        "stream-refused",
        "answer",
        "garbage",
        "silent",
        "ended",
        "stale",
    ];

    /// The word in metrics.
    pub const fn word(&self) -> &'static str {
        let place = match self {
            Self::Unreachable { .. } => 0,
            Self::Unauthorized(_) => 1,
            Self::Forbidden { .. } => 2,
            Self::Gone(_) => 3,
            Self::StreamRefused(_) => 4,
            Self::Answer { .. } => 5,
            Self::Garbage(_) => 6,
            Self::Silent(_) => 7,
            Self::Ended => 8,
            Self::Stale { .. } => 9,
        };
        Self::WORDS[place]
    }

    /// Whether a new connection with credentials that are read again may help.
    pub const fn asks_for_new_client(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Unauthorized(_))
    }

    /// Whether what was heard before can no longer be built upon.
    pub const fn asks_for_list(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Garbage(_) | Self::StreamRefused(_))
    }

    /// Whether asking again soon would only burden a server that has decided.
    pub const fn is_decided(&self) -> bool {
        matches!(self, Self::Unauthorized(_) | Self::Forbidden { .. } | Self::Garbage(_))
    }

    /// An error of the client, before the server could answer.
    pub fn of_error(server: &str, error: &(dyn Error + 'static)) -> Self {
        Self::Unreachable { server: server.to_owned(), why: chain(error) }
    }

    /// A status of the server, over HTTP or in an event. `streaming` says that a list was asked for as a stream.
    pub fn of_status(resource: Resource, verb: &'static str, streaming: bool, status: &Answer) -> Self {
        let message = status.message.clone();
        match status.code {
            401 => Self::Unauthorized(message),
            403 => Self::Forbidden { verb, resource: resource.name(), message },
            // The second: a server that was restored from a backup does not know of what comes next.
            410 => Self::Gone(message),
            _ if message.contains("Too large resource version") => Self::Gone(message),
            code if streaming && (matches!(code, 400 | 404 | 405 | 422) || speaks_of_streams(&message)) => {
                Self::StreamRefused(message)
            }
            code => Self::Answer { code, message },
        }
    }
}

/// What a server answers when it does not do what it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub code: u16,
    /// Its words.
    pub message: String,
}

impl Answer {
    /// A Status object; the HTTP status counts where it has no code.
    pub fn of(status: &Value, http: u16) -> Self {
        let code = status.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        let text = |field| status.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let message = text("message").or_else(|| text("reason")).unwrap_or("without a message");
        Self { code: code.filter(|code| *code > 0).unwrap_or(http), message: shortened(message) }
    }
}

/// At most this many characters of what a server says are repeated.
const WORDS_MAX: usize = 300;

/// A text on one line, cut where it is long.
pub fn shortened(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= WORDS_MAX {
        return line;
    }
    let mut cut: String = line.chars().take(WORDS_MAX).collect();
    cut.push('…');
    cut
}

/// Servers without streamed lists name what they do not have in different ways.
fn speaks_of_streams(message: &str) -> bool {
    ["RequestWatchProgress", "sendInitialEvents", "resourceVersionMatch", "WatchList"]
        .iter()
        .any(|word| message.contains(word))
}

/// The causes of an error, each once.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = shortened(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = shortened(&error.to_string());
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// What to do about a connection that fails, as far as the causes tell.
fn advice(why: &str) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| why.contains(word));
    if says(&["UnknownIssuer", "BadSignature"]) {
        " (the certificate was not signed by the CA that is configured: another cluster's kubeconfig, or a proxy between)"
    } else if says(&["NotValidForName", "not valid for name"]) {
        " (the certificate does not carry this name: give --api-server with a name or address that it carries)"
    } else if says(&["Expired", "NotValidYet", "certificate expired", "not valid yet"]) {
        " (look at the certificate's dates and this node's clock)"
    } else if says(&["CertificateRequired", "CertificateExpired", "AccessDenied", "CertificateUnknown"]) {
        " (the server refuses the client certificate)"
    } else if says(&["dns error", "failed to lookup"]) {
        " (its name cannot be resolved: --api-server takes an address)"
    } else if says(&["refused", "unreachable", "timed out", "deadline"]) {
        " (is it running? Where the address is a ClusterIP it needs kube-proxy first: --api-server takes another address)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str, streaming: bool) -> Failure {
        let answer = Answer { code, message: message.to_owned() };
        Failure::of_status(Resource::Policies, "watch", streaming, &answer)
    }

    #[test]
    fn each_failure_has_its_word() {
        assert_eq!(status(401, "x", true).word(), "unauthorized");
        assert_eq!(status(403, "x", true).word(), "forbidden");
        assert_eq!(status(410, "x", true).word(), "gone");
        assert_eq!(status(504, "Too large resource version: 9, current: 5", false).word(), "gone");
        assert_eq!(status(500, "x", true).word(), "answer");
        assert_eq!(status(422, "x", true).word(), "stream-refused");
        assert_eq!(status(422, "x", false).word(), "answer");
        assert_eq!(status(500, "RequestWatchProgress is disabled", true).word(), "stream-refused");
        assert_eq!(Failure::Ended.word(), "ended");
        assert_eq!(Failure::Silent(Duration::ZERO).word(), "silent");
        assert_eq!(Failure::Stale { listed: 1, known: 2 }.word(), "stale");
        assert_eq!(Failure::Garbage(String::new()).word(), "garbage");
    }

    #[test]
    fn what_is_forbidden_names_verb_and_resource() {
        let text = status(403, "no", true).to_string();
        assert!(text.contains("watch of networkpolicies") && text.contains("ClusterRole"), "{text}");
    }

    #[test]
    fn causes_are_told_once_and_with_advice() {
        let error = Failure::Unreachable { server: "x".into(), why: "invalid peer certificate: UnknownIssuer".into() };
        assert!(error.to_string().contains("CA that is configured"), "{error}");
        let error = std::io::Error::other(std::io::Error::other("Connection refused"));
        assert_eq!(chain(&error), "Connection refused");
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(shortened("a\nb"), "a b");
        assert!(shortened(&"x".repeat(1000)).chars().count() <= WORDS_MAX + 1);
    }
}
