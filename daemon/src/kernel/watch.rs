//! What others do to our tables.
//!
//! In: the kernel's events about nftables. Out: what of which tables somebody else changed, and who. What always holds: own
//! transactions are no events; an event that is lost is told as one about everything.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

use crate::netlink::{Malformed, Message, NETFILTER_HEADER, NetlinkError, Socket};

/// NFNLGRP_NFTABLES (group 7) as a mask.
const GROUP: u32 = 1 << 6;

/// What may wait unread: somebody may load a ruleset of 100,000 elements. Own events take no room: a first load has more than this.
const RECEIVE_BUFFER: usize = 16 << 20;

/// NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u16 = 0x0a00;
/// NFT_MSG_NEWGEN, the last event of each transaction.
const NEWGEN: u16 = 15;

/// What of a table was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The table itself.
    Table,
    /// A chain.
    Chain,
    /// A rule.
    Rule,
    /// A set or map.
    Set,
    /// Elements of a set or map.
    Elements,
    /// A counter.
    Counter,
}

impl Part {
    /// Of an event's type, by NFT_MSG_NEW* and NFT_MSG_DEL* of linux/netfilter/nf_tables.h.
    fn of(kind: u16) -> Option<Self> {
        match kind {
            0 | 2 => Some(Self::Table),
            3 | 5 => Some(Self::Chain),
            6 | 8 => Some(Self::Rule),
            9 | 11 => Some(Self::Set),
            12 | 14 => Some(Self::Elements),
            18 | 20 => Some(Self::Counter),
            _ => None,
        }
    }
}

/// What somebody else did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// What of our tables they changed.
    pub parts: BTreeSet<Part>,
    /// The processes that did, as `nft (4711)`.
    pub by: BTreeSet<String>,
    /// Events were lost: they may have changed anything.
    pub is_unknown: bool,
}

impl Foreign {
    /// Whether our tables may not be as they were.
    pub fn is_something(&self) -> bool {
        self.is_unknown || !self.parts.is_empty()
    }
}

/// Hears of every transaction in the network namespace of the thread that opened it.
pub struct Watch {
    socket: Socket,
    /// Whose events the kernel leaves out.
    own: u32,
    /// What the transaction changed whose events are being read.
    parts: BTreeSet<Part>,
}

impl Watch {
    /// Hears from now on what others do; `own` is the port of the socket that commits.
    pub fn open(own: u32) -> Result<Self, NetlinkError> {
        let socket = Socket::open(mnl::Bus::Netfilter, GROUP)?;
        socket.widen(RECEIVE_BUFFER)?;
        socket.pass_over(own)?;
        Ok(Self { socket, own, parts: BTreeSet::new() })
    }

    /// What others did to tables of these names since the last question; `own` is the port of the socket that commits now.
    pub fn poll(&mut self, own: u32, is_ours: impl Fn(&str) -> bool) -> Result<Foreign, NetlinkError> {
        if self.own != own {
            self.socket.pass_over(own)?;
            self.own = own;
        }
        let mut foreign = Foreign::default();
        loop {
            match self.socket.poll() {
                Ok(Some(messages)) => {
                    for message in messages {
                        take(message?, own, &is_ours, &mut self.parts, &mut foreign)?;
                    }
                }
                Ok(None) => return Ok(foreign),
                Err(NetlinkError::Overrun) => foreign.is_unknown = true,
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes one event in.
pub(super) fn take(
    message: Message<'_>,
    own: u32,
    is_ours: impl Fn(&str) -> bool,
    parts: &mut BTreeSet<Part>,
    foreign: &mut Foreign,
) -> Result<(), Malformed> {
    const TABLE: u16 = 1;
    if message.port == own || message.kind & 0xff00 != SUBSYSTEM {
        return Ok(());
    }
    let kind = message.kind & 0x00ff;
    if kind == NEWGEN {
        if !parts.is_empty() {
            foreign.parts.append(parts);
            foreign.by.extend(author(message)?);
        }
    } else if let Some(part) = Part::of(kind)
        && let Some(table) = message.attrs(NETFILTER_HEADER)?.find_kind(TABLE)?
        && is_ours(table.text()?)
    {
        parts.insert(part);
    }
    Ok(())
}

/// Who committed, as NFTA_GEN_PROC_NAME and NFTA_GEN_PROC_PID say.
fn author(message: Message<'_>) -> Result<Option<String>, Malformed> {
    const PROCESS: u16 = 2;
    const NAME: u16 = 3;
    let attrs = message.attrs(NETFILTER_HEADER)?;
    let (Some(name), Some(process)) = (attrs.find_kind(NAME)?, attrs.find_kind(PROCESS)?) else { return Ok(None) };
    Ok(Some(format!("{} ({})", name.text()?, process.u32_be()?)))
}

#[cfg(test)]
mod tests {
    use flatfell_rules::ruleset::{Family, Op, OpKind, TableId};

    use super::*;
    use crate::kernel::Kernel;
    use crate::netlink::{Messages, Request, netfilter};
    use crate::testing::in_namespace;

    const OURS: &str = "flatfell-1a";

    fn event(kind: u16, table: &str) -> Request {
        Request::new(SUBSYSTEM | kind, 0, &netfilter(1)).text(1, table)
    }

    fn end() -> Request {
        Request::new(SUBSYSTEM | NEWGEN, 0, &netfilter(0)).attr(2, &4711_u32.to_be_bytes()).text(3, "nft")
    }

    /// What the events of these requests say, of whom port 0 is the author.
    fn heard(own: u32, requests: impl IntoIterator<Item = Request>) -> Foreign {
        let (mut parts, mut foreign) = (BTreeSet::new(), Foreign::default());
        for request in requests {
            let bytes = request.finish(1).expect("short");
            for message in Messages::new(&bytes) {
                take(message.expect("well formed"), own, |table| table == OURS, &mut parts, &mut foreign)
                    .expect("well formed");
            }
        }
        foreign
    }

    #[test]
    fn an_edit_is_told_with_its_author_when_its_transaction_ends() {
        let edit = || [event(8, OURS), event(14, OURS), event(6, "theirs")];
        assert!(!heard(7, edit()).is_something(), "not committed yet");
        let foreign = heard(7, edit().into_iter().chain([end()]));
        assert_eq!(foreign.parts, BTreeSet::from([Part::Rule, Part::Elements]));
        assert_eq!(foreign.by, BTreeSet::from(["nft (4711)".to_owned()]));
    }

    fn ops(count: u32) -> Vec<Op> {
        let table = TableId { family: Family::Inet, name: OURS.to_owned() };
        let chain = |at: u32| OpKind::AddChain {
            name: format!("c{at}").into(),
            hook: None,
            comment: "as long as the comments of chains are, with a namespace and a pod".to_owned(),
        };
        let kinds = std::iter::once(OpKind::AddTable).chain((0..count).map(chain));
        kinds.map(|kind| Op { table: table.clone(), kind }).collect()
    }

    /// Own commits take no room where events wait, however large they are; the next edit is heard.
    #[test]
    fn own_commits_do_not_overrun_the_watch() {
        in_namespace(|| {
            let (mut kernel, mut other) = (Kernel::open().expect("sockets"), Kernel::open().expect("sockets"));
            let mut watch = Watch::open(kernel.port()).expect("a socket");
            watch.socket.widen(1).expect("the smallest there is");
            kernel.commit(&ops(300)).expect("committed");
            assert_eq!(watch.poll(kernel.port(), |table| table == OURS).expect("poll"), Foreign::default());
            other.commit(&ops(0)).expect("nothing new");
            let edit = Op { table: ops(0)[0].table.clone(), kind: OpKind::DeleteTable };
            other.commit(&[edit]).expect("committed");
            let foreign = watch.poll(kernel.port(), |table| table == OURS).expect("poll");
            assert!(foreign.is_something(), "{foreign:?}");
            // A socket in place of one whose answer was lost has another port.
            other.commit(&ops(300)).expect("committed");
            assert!(watch.poll(kernel.port(), |table| table == OURS).expect("poll").is_unknown);
            watch.poll(other.port(), |table| table == OURS).expect("poll");
            other.commit(&ops(300)).expect("committed");
            assert_eq!(watch.poll(other.port(), |table| table == OURS).expect("poll"), Foreign::default());
        });
    }

    #[test]
    fn own_edits_and_edits_of_other_tables_are_nothing() {
        assert!(!heard(0, [event(8, OURS), end()]).is_something());
        assert!(!heard(7, [event(2, "theirs"), end()]).is_something());
    }
}
