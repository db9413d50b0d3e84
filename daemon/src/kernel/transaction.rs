//! Operations as one transaction: all of them or none.
//!
//! In: operations. Out: that they are committed, or which one was refused and why. What always holds: the whole batch is
//! one sendmsg, begin to end; committed means the answer to the last operation and no error for any other; an error
//! names the first operation that was refused (later errors follow from it); where neither is known it is said so.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use flatfell_rules::encode::{Batch, BatchError, Ownership, describe, encode};
use flatfell_rules::ruleset::Op;
use nix::errno::Errno;

use crate::netlink::{Answer, Malformed, NetlinkError, Socket, words};

/// How often a batch is sent again that the kernel asked to send again.
const ATTEMPTS: usize = 5;

/// What a transaction was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitStats {
    /// Operations.
    pub ops: usize,
    /// Bytes of the batch.
    pub bytes: usize,
    /// From the first byte sent to the last answer.
    pub duration: Duration,
}

/// Why a transaction is not known to be committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// An operation cannot be encoded. Nothing was sent.
    #[error("cannot be encoded: {0}")]
    Encode(#[from] BatchError),
    /// The kernel does not take a batch of this size. Nothing changed.
    #[error("batch of {bytes} bytes is too large for the socket")]
    TooLarge {
        /// Bytes of the batch.
        bytes: usize,
    },
    /// An operation was refused. Nothing changed.
    #[error("{op}: {errno}{}", words(message.as_deref()))]
    Refused {
        /// Its place in the list.
        index: usize,
        /// Its description.
        op: String,
        /// The kernel's error.
        errno: Errno,
        /// The kernel's words.
        message: Option<String>,
    },
    /// The transaction as a whole was refused. Nothing changed.
    #[error("transaction refused: {errno}{}", words(message.as_deref()))]
    Aborted {
        /// The kernel's error.
        errno: Errno,
        /// The kernel's words.
        message: Option<String>,
    },
    /// The socket failed before anything was sent.
    #[error("{0}")]
    Socket(#[source] NetlinkError),
    /// The answers were lost: read back what the kernel has, then decide.
    #[error("not known whether it is committed: {0}")]
    Uncertain(#[source] NetlinkError),
}

impl CommitError {
    /// Whether the kernel may have committed in spite of it.
    pub fn is_uncertain(&self) -> bool {
        matches!(self, Self::Uncertain(_))
    }
}

/// Commits all operations or none; tables are added with this ownership.
pub(super) fn commit(socket: &mut Socket, ops: &[Op], ownership: Ownership) -> Result<CommitStats, CommitError> {
    let start = Instant::now();
    let batch = encode(ops, ownership)?;
    if batch.is_empty() {
        // Nothing would be answered.
        return Ok(CommitStats { ops: ops.len(), bytes: 0, duration: start.elapsed() });
    }
    let mut result = exchange(socket, &batch, ops);
    for _ in 1..ATTEMPTS {
        match &result {
            Err(CommitError::Aborted { errno: Errno::EINTR | Errno::ERESTART | Errno::EAGAIN, .. }) => {
                result = exchange(socket, &batch, ops);
            }
            _ => break,
        }
    }
    result.map(|()| CommitStats { ops: ops.len(), bytes: batch.bytes().len(), duration: start.elapsed() })
}

fn exchange(socket: &mut Socket, batch: &Batch, ops: &[Op]) -> Result<(), CommitError> {
    let bytes = batch.bytes().len();
    socket.send(batch.bytes()).map_err(|error| match error {
        NetlinkError::Call { errno: Errno::EMSGSIZE, .. } => CommitError::TooLarge { bytes },
        NetlinkError::Call { errno: Errno::EINTR, .. } | NetlinkError::Partial(_) => CommitError::Uncertain(error),
        _ => CommitError::Socket(error),
    })?;
    let mut answers = Answers { batch, ops, cause: None };
    loop {
        let received = socket.receive().map_err(CommitError::Uncertain)?;
        for message in received {
            let message = message.map_err(uncertain)?;
            let Some(answer) = message.answer().map_err(uncertain)? else { continue };
            if let ControlFlow::Break(result) = answers.take(message.sequence, answer) {
                return result;
            }
        }
    }
}

fn uncertain(malformed: Malformed) -> CommitError {
    CommitError::Uncertain(malformed.into())
}

/// What was answered so far.
struct Answers<'a> {
    batch: &'a Batch,
    ops: &'a [Op],
    cause: Option<CommitError>,
}

impl Answers<'_> {
    /// Ends with the answer to the last operation, or with an error of the transaction as a whole, which comes alone.
    fn take(&mut self, seq: u32, answer: Answer) -> ControlFlow<Result<(), CommitError>> {
        if let Some(errno) = answer.error {
            let cause = self.refusal(seq, errno, answer.message);
            let first = self.cause.take().unwrap_or(cause);
            if seq == Batch::BEGIN {
                return ControlFlow::Break(Err(first));
            }
            self.cause = Some(first);
        }
        if seq == self.batch.last() {
            return ControlFlow::Break(self.cause.take().map_or(Ok(()), Err));
        }
        ControlFlow::Continue(())
    }

    fn refusal(&self, seq: u32, errno: Errno, message: Option<String>) -> CommitError {
        match self.batch.op(seq).and_then(|index| Some((index, self.ops.get(index)?))) {
            Some((index, op)) => CommitError::Refused { index, op: describe(op), errno, message },
            None => CommitError::Aborted { errno, message },
        }
    }
}

#[cfg(test)]
mod tests {
    use flatfell_rules::ruleset::{Family, OpKind, TableId};

    use super::*;

    /// What comes of these answers to two operations; `None` while more is waited for.
    fn outcome(answers: &[(u32, Option<Errno>)]) -> Option<Result<(), CommitError>> {
        let table = TableId { family: Family::Inet, name: "flatfell-1a".to_owned() };
        let ops = [OpKind::AddTable, OpKind::DeleteTable].map(|kind| Op { table: table.clone(), kind });
        let batch = encode(&ops, Ownership::Shared).expect("batch");
        let mut state = Answers { batch: &batch, ops: &ops, cause: None };
        answers.iter().find_map(|(seq, error)| state.take(*seq, Answer { error: *error, message: None }).break_value())
    }

    #[test]
    fn the_answer_to_the_last_operation_is_success_only_without_an_error_before_it() {
        assert!(outcome(&[]).is_none());
        assert!(outcome(&[(1, None)]).is_none());
        assert!(matches!(outcome(&[(2, None)]), Some(Ok(()))));
        let refused = outcome(&[(1, Some(Errno::EPERM)), (2, None)]);
        assert!(matches!(refused, Some(Err(CommitError::Refused { index: 0, errno: Errno::EPERM, .. }))));
    }

    #[test]
    fn the_first_error_is_the_cause() {
        let refused = outcome(&[(1, Some(Errno::EEXIST)), (2, Some(Errno::ENOENT))]);
        assert!(matches!(refused, Some(Err(CommitError::Refused { index: 0, errno: Errno::EEXIST, .. }))));
    }

    #[test]
    fn an_error_of_the_whole_names_no_operation_and_is_the_last() {
        let aborted = outcome(&[(Batch::BEGIN, Some(Errno::ERESTART))]);
        assert!(matches!(aborted, Some(Err(CommitError::Aborted { errno: Errno::ERESTART, .. }))));
    }
}
