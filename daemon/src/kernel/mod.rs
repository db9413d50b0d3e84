//! The one place where the kernel's netfilter is touched.
//!
//! In: operations of the model, and questions. Out: transactions, and what the kernel has in the model's terms. What always
//! holds: everything here blocks and is used by one thread; a transaction is all or nothing; after one whose outcome is
//! not known, no late answer to it is taken for the answer to another.

pub mod conntrack;
mod counts;
mod dump;
pub(crate) mod fuzzing;
pub mod transaction;
pub mod watch;

use std::collections::HashMap;

pub use counts::Counters;
use flatfell_rules::encode::Ownership;
use flatfell_rules::ruleset::{Family, Op, OpKind, Ruleset, TableId};
use nix::errno::Errno;
pub use transaction::{CommitError, CommitStats};

use crate::netlink::{NetlinkError, Socket};

/// What may wait unread: a refused batch of 20,000 operations is answered with 20,000 messages.
const RECEIVE_BUFFER: usize = 64 << 20;

/// A socket to netfilter with room for every answer to a transaction.
pub fn netfilter_socket() -> Result<Socket, NetlinkError> {
    let socket = Socket::open(mnl::Bus::Netfilter, 0)?;
    socket.widen(RECEIVE_BUFFER)?;
    Ok(socket)
}

/// The kernel's nftables, over netlink, of the network namespace of the thread that opened it.
pub struct Kernel {
    transactions: Socket,
    dumps: Socket,
    /// The counters of each table as they were read last.
    known: HashMap<TableId, counts::Known>,
    ownership: Ownership,
}

impl Kernel {
    /// Opens the sockets.
    pub fn open() -> Result<Self, NetlinkError> {
        let (transactions, dumps) = (netfilter_socket()?, netfilter_socket()?);
        Ok(Self { transactions, dumps, known: HashMap::new(), ownership: Ownership::Shared })
    }

    /// Nobody else may change the tables that are added from now on, as long as this lives. False for a kernel that does not
    /// know owners of tables that stay behind them (before Linux 6.9).
    pub fn own_tables(&mut self) -> Result<bool, CommitError> {
        let table = TableId { family: Family::Inet, name: "flatfell-probe".to_owned() };
        let ops = [OpKind::AddTable, OpKind::DeleteTable].map(|kind| Op { table: table.clone(), kind });
        let is_known = is_supported(transaction::commit(&mut self.transactions, &ops, Ownership::Owned))?;
        self.ownership = if is_known { Ownership::Owned } else { Ownership::Shared };
        Ok(is_known)
    }

    /// Takes over a table whose owner is gone. False for one that never had one: it is anybody's for its life.
    pub fn adopt(&mut self, table: &TableId) -> Result<bool, CommitError> {
        let ops = [Op { table: table.clone(), kind: OpKind::AddTable }];
        is_supported(transaction::commit(&mut self.transactions, &ops, Ownership::Owned))
    }

    /// The port of the socket that commits.
    pub fn port(&self) -> u32 {
        self.transactions.port()
    }

    /// Whether tables are added as its own.
    pub fn owns_tables(&self) -> bool {
        self.ownership == Ownership::Owned
    }

    /// Commits all operations or none.
    pub fn commit(&mut self, ops: &[Op]) -> Result<CommitStats, CommitError> {
        let result = transaction::commit(&mut self.transactions, ops, self.ownership);
        if result.as_ref().is_err_and(CommitError::is_uncertain) {
            self.transactions = netfilter_socket().map_err(CommitError::Uncertain)?;
        }
        result
    }

    /// All tables of the families in use.
    pub fn tables(&mut self) -> Result<Vec<TableId>, NetlinkError> {
        self.ask(dump::tables)
    }

    /// The values of a table's counters; empty for a table that is not there. A counter that is made or deleted while
    /// they are read may be missing: an absent name is not zero. Where one is there twice, the later value counts.
    pub fn counters(&mut self, table: &TableId) -> Result<Counters, NetlinkError> {
        let mut known = self.known.remove(table).unwrap_or_default();
        let counters = self.ask(|socket| counts::read(socket, table, &mut known));
        self.known.insert(table.clone(), known);
        counters
    }

    /// The tables of these names as far as they are there. Rules are recognised among those `want` has in the same
    /// chain; any other reads as [`flatfell_rules::ruleset::Expr::Foreign`].
    pub fn read(&mut self, names: &[TableId], want: &Ruleset) -> Result<Ruleset, NetlinkError> {
        self.ask(|socket| dump::read(socket, names, want))
    }

    /// A dump that broke off still runs in the kernel, which refuses another one on the same socket.
    fn ask<T>(&mut self, question: impl FnOnce(&mut Socket) -> Result<T, NetlinkError>) -> Result<T, NetlinkError> {
        let answer = question(&mut self.dumps);
        if answer.as_ref().is_err_and(NetlinkError::leaves_answers) {
            self.dumps = netfilter_socket()?;
        }
        answer
    }
}

/// Whether the kernel can do what was committed.
fn is_supported(result: Result<CommitStats, CommitError>) -> Result<bool, CommitError> {
    match result {
        Ok(_) => Ok(true),
        Err(CommitError::Refused { errno: Errno::EOPNOTSUPP | Errno::EINVAL, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
