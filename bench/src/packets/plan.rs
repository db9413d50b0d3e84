//! What a run measures.
//!
//! In: quick or full. Out: cases, in order. What always holds: the cases that the bars are about are in both; rows of one case share a lab and
//! a layout.

use serde::Serialize;

use super::column::Column;
use super::row::{Kind, Row};
use super::size::Size;

/// What grows from case to case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// Nothing: every row and column at one size.
    None,
    /// Rules of each direction of one pod.
    Rules,
    /// Policies on the node.
    Policies,
    /// Pods of the node.
    LocalPods,
    /// Pods that one rule names.
    Peers,
    /// CIDRs that one rule names.
    Blocks,
}

impl Axis {
    /// Those with a plot.
    pub const ALL: [Self; 5] = [Self::Rules, Self::Policies, Self::LocalPods, Self::Peers, Self::Blocks];

    /// Its title.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "every row",
            Self::Rules => "rules that select one pod",
            Self::Policies => "policies",
            Self::LocalPods => "local pods",
            Self::Peers => "peers in a set",
            Self::Blocks => "CIDRs in a rule",
        }
    }

    fn size(self, value: usize) -> Size {
        let size = Size::default();
        match self {
            Self::None => size,
            Self::Rules => Size { rules: value, ..size },
            Self::Policies => Size { policies: value, ..size },
            Self::LocalPods => Size { local: value, ..size },
            Self::Peers => Size { peers: value, ..size },
            Self::Blocks => Size { blocks: value, ..size },
        }
    }
}

/// One layout, and what is sent through it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What grows.
    pub axis: Axis,
    /// How far.
    pub value: usize,
    /// The cluster.
    pub size: Size,
    /// Compared with the baseline.
    pub column: Column,
    /// The traffic.
    pub rows: Vec<Row>,
}

/// The packet and the connection: what each axis is looked at with.
const LOOKED_AT: [Kind; 3] = [Kind::Exchange, Kind::Connect, Kind::NewFlow];

fn case(axis: Axis, value: usize, column: Column, rows: Vec<Row>) -> Case {
    Case { axis, value, size: axis.size(value), column, rows }
}

fn along(axis: Axis, values: &[usize], column: Column) -> Vec<Case> {
    values.iter().map(|value| case(axis, *value, column, LOOKED_AT.map(Row::near).into())).collect()
}

/// The cases of a run.
pub fn cases(quick: bool) -> Vec<Case> {
    let near = |kinds: &[Kind]| kinds.iter().copied().map(Row::near).collect();
    if quick {
        let mut cases = vec![
            case(Axis::None, 0, Column::Again, near(&LOOKED_AT)),
            case(Axis::None, 0, Column::Flatfell, near(&Kind::ALL)),
            case(Axis::None, 0, Column::FlatfellUncounted, near(&[Kind::Exchange])),
            case(Axis::None, 0, Column::FlatfellForgeable, near(&LOOKED_AT)),
        ];
        cases.extend(along(Axis::Rules, &[100], Column::Flatfell));
        cases.extend(along(Axis::Policies, &[10, 10_000], Column::Flatfell));
        cases.extend(along(Axis::LocalPods, &[10, 1_000], Column::Flatfell));
        return cases;
    }
    let every = Column::ALL.into_iter().map(|column| case(Axis::None, 0, column, Row::all()));
    let mut cases: Vec<Case> = every.collect();
    for (axis, values) in [
        (Axis::Rules, &[1, 3, 10, 30, 100][..]),
        (Axis::Policies, &[10, 100, 1_000, 10_000]),
        (Axis::LocalPods, &[10, 100, 1_000]),
        (Axis::Peers, &[10, 1_000, 100_000]),
        (Axis::Blocks, &[10, 1_000, 10_000]),
    ] {
        cases.extend(along(axis, values, Column::Flatfell));
    }
    cases.extend(along(Axis::LocalPods, &[10, 100, 1_000], Column::IptablesIpset));
    cases.extend(along(Axis::Rules, &[1, 10, 100], Column::IptablesIpset));
    cases
}
