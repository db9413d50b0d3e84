//! A door for the fuzzers (`integration/fuzz`): every reader of bytes that others write, without the socket or the file before it.
//!
//! In: bytes. Out: what the readers make of them. What always holds: the daemon itself does not use it; there is no reader here that it
//! does not use.

pub use crate::cluster::fuzzing::{Answered, status};
use crate::flows::nflog::{self, Batch};
pub use crate::kernel::fuzzing::{Dumped, events, flows, is_foreign, tables};
pub use crate::links::fuzzing::{links, peer};
use crate::netlink::{Malformed, Messages};

/// What the lookout reads in the tables of others: its words about each finding.
pub fn lookout(datagram: &[u8], mark_mask: u32) -> Result<Vec<String>, Malformed> {
    let mut words = Vec::new();
    for message in Messages::new(datagram) {
        words.extend(crate::bypass::read_all(&message?, mark_mask)?.into_iter().map(|found| found.message));
    }
    Ok(words)
}

/// What comes out of the NFLOG group.
pub fn logged(datagram: &[u8], next: &mut u32) -> Batch {
    let mut batch = Batch::default();
    nflog::take_in(Messages::new(datagram), next, &mut batch);
    batch
}
