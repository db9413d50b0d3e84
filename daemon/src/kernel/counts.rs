//! What a table's counters counted.
//!
//! In: a table's name. Out: each counter's name and value, of named counters and of elements. What always holds: a value stands under the
//! name that the kernel has beside it; a counter that is made or deleted while they are read may be missing, never another's. Read
//! many times a minute, up to 20,000 of them, so without libnftnl; names are made once, and those of a reading are shared with the next.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use flatfell_rules::ids::{CONNECTIONS, COUNTERS};
use flatfell_rules::mark::{NO_ID, id_of};
use flatfell_rules::policy::Direction;
use flatfell_rules::ruleset::{CounterValue, Name, TableId};
use nix::errno::Errno;

use super::dump::{ATTR_OBJECT_TYPE, ATTR_SET, ATTR_TABLE, GETSETELEM, OBJECT_COUNTER, Question};
use crate::netlink::{
    ACKED, Attr, Attrs, Malformed, Message, NETFILTER_HEADER, NetlinkError, Request, Socket, netfilter,
};

/// Dumps that are merged: while transactions run every one is interrupted, and a counter that one of them misses is in another.
const MERGED: usize = 5;

/// Connections that are asked for one by one; a dump of all of them costs as much as a few times that.
const FEW: usize = 512;

/// Ids of one half, and none.
const IDS: usize = 4096;

/// NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY and NFTA_DATA_VALUE.
const ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const KEY: u16 = 1;
const VALUE: u16 = 1;

/// Counters as they were read, in an order that seldom changes.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    names: Arc<Vec<Name>>,
    values: Vec<CounterValue>,
}

impl Counters {
    /// Their names; the same `Arc` as in an earlier reading of the same counters.
    pub fn names(&self) -> &Arc<Vec<Name>> {
        &self.names
    }

    /// What they counted, in the order of their names.
    pub fn values(&self) -> &[CounterValue] {
        &self.values
    }

    /// Both.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, CounterValue)> {
        self.names.iter().zip(self.values.iter().copied())
    }
}

impl FromIterator<(Name, CounterValue)> for Counters {
    fn from_iter<T: IntoIterator<Item = (Name, CounterValue)>>(counters: T) -> Self {
        let (names, values) = counters.into_iter().unzip();
        Self { names: Arc::new(names), values }
    }
}

/// The counters of a table as they were read last.
#[derive(Default)]
pub(super) struct Known {
    /// All names in their order.
    names: Arc<Vec<Name>>,
    named: Vec<Name>,
    packets: ById,
    connections: ById,
    /// Whether each connection is known that was counted before the packets were read.
    is_complete: bool,
}

/// Counters of elements, by their mark.
#[derive(Default)]
struct ById {
    counted: Vec<Counted>,
    /// Where in `counted` that of each place is: few nodes use many of the ids.
    index: Vec<Option<u16>>,
    reading: u64,
    digests: RandomState,
}

/// One of them.
struct Counted {
    place: usize,
    name: Name,
    /// Of the name, which lies elsewhere: to fetch it for each element takes longer than all else here.
    digest: u64,
    value: CounterValue,
    /// The reading it was in last.
    reading: u64,
}

/// An element as it was read.
struct Read<'a> {
    mark: u32,
    name: &'a [u8],
    value: CounterValue,
}

/// The place of a mark with no more than one id; 0 is that of none.
fn place(mark: u32) -> Option<usize> {
    match (id_of(Direction::Egress, mark), id_of(Direction::Ingress, mark)) {
        (Some(id), None) => Some(IDS + usize::from(id)),
        (None, Some(id)) => Some(usize::from(id)),
        (None, None) if mark == 0 => Some(0),
        _ => None,
    }
}

/// Whether connections are counted by this mark.
fn has_connections(mark: u32) -> bool {
    let is_given = |half| id_of(half, mark).is_some_and(|id| id != NO_ID);
    is_given(Direction::Egress) || is_given(Direction::Ingress)
}

impl ById {
    /// Takes one in. Whether it is another than before.
    fn take_in(&mut self, read: &Read<'_>) -> Result<bool, Malformed> {
        // Nobody's: what it counts, no rule of ours asked for.
        let Some(place) = place(read.mark) else { return Ok(false) };
        let (reading, digest) = (self.reading, self.digests.hash_one(read.name));
        if let Some(known) = self.at(place).map(|at| &mut self.counted[at]).filter(|known| known.digest == digest) {
            let is_other = known.value != read.value;
            (known.value, known.reading) = (read.value, reading);
            return Ok(is_other);
        }
        let name = str::from_utf8(read.name).map_err(|_| Malformed("a counter's name is not UTF-8"))?;
        self.put(Counted { place, name: name.into(), digest, value: read.value, reading });
        Ok(true)
    }

    /// One that was not there, or has another name now.
    fn put(&mut self, counted: Counted) {
        match self.at(counted.place) {
            Some(at) => self.counted[at] = counted,
            None => {
                self.index.resize(2 * IDS, None);
                self.index[counted.place] = u16::try_from(self.counted.len()).ok();
                self.counted.push(counted);
            }
        }
    }

    fn at(&self, place: usize) -> Option<usize> {
        self.index.get(place).copied().flatten().map(usize::from)
    }

    fn get(&self, place: usize) -> Option<&Counted> {
        self.at(place).map(|at| &self.counted[at])
    }
}

/// The values of a table's counters; none of a table that is not there.
pub(super) fn read(socket: &mut Socket, table: &TableId, known: &mut Known) -> Result<Counters, NetlinkError> {
    let mut values = named(socket, table, &mut known.named)?;
    known.elements(socket, table)?;
    let mut names: Vec<&Name> = known.named.iter().collect();
    for packets in known.packets.counted.iter().filter(|packets| packets.reading == known.packets.reading) {
        for one in [Some(packets), known.connections.get(packets.place)].into_iter().flatten() {
            names.push(&one.name);
            values.push(one.value);
        }
    }
    let is_same = |(old, new): (&Name, &&Name)| Arc::ptr_eq(old, new);
    if known.names.len() != names.len() || !known.names.iter().zip(&names).all(is_same) {
        known.names = Arc::new(names.into_iter().cloned().collect());
    }
    Ok(Counters { names: Arc::clone(&known.names), values })
}

impl Known {
    /// Takes in what one message of any of its dumps says.
    pub(super) fn take_in(&mut self, message: Message<'_>, table: &str) -> Result<(), Malformed> {
        read_value(message, table)?;
        let Self { packets, connections, .. } = self;
        each_element(message, |read| packets.take_in(&read).and(connections.take_in(&read)).map(drop))
    }

    /// Reads what elements counted. A connection counts with its first packet, so those of an id are read only where its packets
    /// are others than before: most rules of a node have no traffic between two readings.
    fn elements(&mut self, socket: &mut Socket, table: &TableId) -> Result<(), NetlinkError> {
        self.packets.reading += 1;
        let was_complete = std::mem::replace(&mut self.is_complete, false);
        let (packets, mut moved) = (&mut self.packets, Vec::new());
        dump(socket, table, COUNTERS, |read| {
            if packets.take_in(&read)? && has_connections(read.mark) {
                moved.push(read.mark);
            }
            Ok(())
        })?;
        let is_read = was_complete && moved.len() <= FEW && self.some_connections(socket, table, &moved)?;
        if !is_read {
            let connections = &mut self.connections;
            dump(socket, table, CONNECTIONS, |read| connections.take_in(&read).map(drop))?;
        }
        self.is_complete = true;
        Ok(())
    }

    /// Reads the connections of these. Whether all of them were there.
    fn some_connections(&mut self, socket: &mut Socket, table: &TableId, marks: &[u32]) -> Result<bool, NetlinkError> {
        if marks.is_empty() {
            return Ok(true);
        }
        let request = Request::new(GETSETELEM, ACKED, &netfilter(flatfell_rules::encode::family(table.family)));
        let request = request.text(ATTR_TABLE, &table.name).text(ATTR_SET, CONNECTIONS);
        let one = |list: Request, mark: &u32| {
            list.nest(LIST_ELEMENT, |element| element.nest(KEY, |key| key.attr(VALUE, &mark.to_ne_bytes())))
        };
        let request = request.nest(ELEMENTS, |list| marks.iter().fold(list, one));
        let connections = &mut self.connections;
        let asked = socket.ask::<NetlinkError>(request, |message| {
            each_element(message, |read| connections.take_in(&read).map(drop)).map_err(NetlinkError::from)
        });
        match asked {
            Ok(()) => Ok(true),
            Err(NetlinkError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The elements of a set that count.
fn dump(
    socket: &mut Socket,
    table: &TableId,
    set: &str,
    mut each: impl FnMut(Read<'_>) -> Result<(), Malformed>,
) -> Result<(), NetlinkError> {
    merged(socket, &Question::of_set(table, set), |message| each_element(message, &mut each))
}

/// Named counters: the values of `known`, where the name that was read here before is nearly always the same.
fn named(socket: &mut Socket, table: &TableId, known: &mut Vec<Name>) -> Result<Vec<CounterValue>, NetlinkError> {
    let mut values = Vec::with_capacity(known.len());
    merged(socket, &Question::counters(table), |message| {
        if let Some((name, value)) = read_value(message, &table.name)? {
            know(known, values.len(), name);
            values.push(value);
        }
        Ok(())
    })?;
    known.truncate(values.len());
    Ok(values)
}

/// Dumps until one is whole, or often enough.
fn merged(
    socket: &mut Socket,
    question: &Question<'_>,
    mut each: impl FnMut(Message<'_>) -> Result<(), Malformed>,
) -> Result<(), NetlinkError> {
    for _ in 0..MERGED {
        let dumped = socket.dump::<NetlinkError>(question.request(), |message| Ok(each(message)?));
        match dumped {
            Err(NetlinkError::Interrupted | NetlinkError::Refused { errno: Errno::EINTR, .. }) => {}
            Ok(()) | Err(NetlinkError::Refused { errno: Errno::ENOENT, .. }) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The name that is read at this place.
fn know(known: &mut Vec<Name>, at: usize, name: &str) {
    match known.get_mut(at) {
        Some(same) if same.as_ref() == name => {}
        Some(other) => *other = name.into(),
        None => known.push(name.into()),
    }
}

/// The name and the value of a named counter of this table.
fn read_value<'a>(message: Message<'a>, table: &str) -> Result<Option<(&'a str, CounterValue)>, Malformed> {
    const NAME: u16 = 2;
    const DATA: u16 = 4;
    let (mut is_ours, mut is_counter, mut name, mut value) = (false, false, None, None);
    for attr in message.attrs(NETFILTER_HEADER)? {
        let attr = attr?;
        match attr.kind {
            ATTR_TABLE => is_ours = attr.text()? == table,
            NAME => name = Some(attr.text()?),
            ATTR_OBJECT_TYPE => is_counter = attr.u32_be()? == OBJECT_COUNTER,
            DATA => value = Some(read_data(attr.nested())?),
            _ => {}
        }
    }
    Ok(name.zip(value).filter(|_| is_ours && is_counter))
}

/// The elements of a message that count.
fn each_element(
    message: Message<'_>,
    mut each: impl FnMut(Read<'_>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    for attr in message.attrs(NETFILTER_HEADER)? {
        let attr = attr?;
        if attr.kind == ELEMENTS {
            for element in attr.nested() {
                if let Some(read) = read_element(element?)? {
                    each(read)?;
                }
            }
        }
    }
    Ok(())
}

fn read_element(element: Attr<'_>) -> Result<Option<Read<'_>>, Malformed> {
    const USER_DATA: u16 = 6;
    const EXPRESSION: u16 = 7;
    let (mut mark, mut name, mut value) = (None, None, None);
    for attr in element.nested() {
        let attr = attr?;
        match attr.kind {
            KEY => mark = attr.nested().find_kind(VALUE)?,
            USER_DATA => name = comment(attr.payload),
            EXPRESSION => value = read_expression(attr.nested())?,
            _ => {}
        }
    }
    let (Some(mark), Some(name), Some(value)) = (mark, name, value) else { return Ok(None) };
    Ok(Some(Read { mark: mark.u32_ne()?, name, value }))
}

/// The comment in an element's user data, if it is that alone.
fn comment(user_data: &[u8]) -> Option<&[u8]> {
    match user_data {
        [0, length, text @ .., 0] if text.len() + 1 == usize::from(*length) => Some(text),
        _ => None,
    }
}

fn read_expression(attrs: Attrs<'_>) -> Result<Option<CounterValue>, Malformed> {
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    let (mut is_counter, mut value) = (false, None);
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            NAME => is_counter = attr.payload == b"counter\0",
            DATA if is_counter => value = Some(read_data(attr.nested())?),
            _ => {}
        }
    }
    Ok(value)
}

fn read_data(attrs: Attrs<'_>) -> Result<CounterValue, Malformed> {
    const BYTES: u16 = 1;
    const PACKETS: u16 = 2;
    let mut value = CounterValue::default();
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            BYTES => value.bytes = attr.u64_be()?,
            PACKETS => value.packets = attr.u64_be()?,
            _ => {}
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Messages;

    fn one(bytes: &[u8]) -> Message<'_> {
        Messages::new(bytes).next().expect("one message").expect("well formed")
    }

    #[test]
    fn a_counter_is_read_without_the_library() {
        let of = |table: &str, kind: u32| {
            Request::new(0x0a12, 0, &netfilter(1))
                .text(1, table)
                .text(2, "rule-1")
                .attr(3, &kind.to_be_bytes())
                .nest(4, |data| data.attr(1, &700_u64.to_be_bytes()).attr(2, &7_u64.to_be_bytes()))
                .finish(1)
                .expect("short")
        };
        let read = |bytes: &[u8]| -> Option<(Name, CounterValue)> {
            read_value(one(bytes), "ours").expect("well formed").map(|(name, value)| (name.into(), value))
        };
        let expected = CounterValue { packets: 7, bytes: 700 };
        assert_eq!(read(&of("ours", OBJECT_COUNTER)), Some(("rule-1".into(), expected)));
        assert_eq!(read(&of("theirs", OBJECT_COUNTER)), None, "a table of another name");
        assert_eq!(read(&of("ours", 2)), None, "a quota");
    }
}
