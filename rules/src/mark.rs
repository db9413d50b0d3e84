//! The bits of ct mark: all 32 are the daemon's, of flows with an end in a local pod.
//!
//! ```text
//!  31           25   24   23                  12 11                   0
//! |  generation   | two |   id of the egress    |   id of the ingress    |
//! |               | ids |   half, 0 for none    |   half, 0 for none     |
//! ```
//!
//! In: a generation and ids. Out: marks. What always holds: the generation is 0 for a flow that nobody judged and
//! [`DENIED_MARK`]'s for one that was denied; the bit of two ids is set in no other mark of a generation than one with both ids, so
//! that one compare of the top byte tells what is to be counted.

use crate::policy::Direction;

/// Bits of the generation.
pub const GENERATION_MASK: u32 = 0xfe00_0000;

/// The generation's lowest bit.
const GENERATION_SHIFT: u32 = 25;

/// Set where both halves have an id.
pub const TWO_IDS: u32 = 0x0100_0000;

/// Bits of both ids.
pub const IDS_MASK: u32 = 0x00ff_ffff;

/// The mark, under [`GENERATION_MASK`], of a flow that policy denied.
pub const DENIED_MARK: u32 = GENERATION_MASK;

/// The number in the generation's bits of a denied flow.
const DENIED: u8 = 127;

/// The id of all those that got none: their packets count as not attributed.
pub const NO_ID: u16 = 4095;

/// The largest id that can be given out.
pub const ID_MAX: u16 = NO_ID - 1;

/// Both halves of a connection, in the order a packet meets them.
pub const HALVES: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// Bits of the id of one half: egress is the half of the pod that began the connection.
pub const fn id_mask(half: Direction) -> u32 {
    match half {
        Direction::Egress => 0x00ff_f000,
        Direction::Ingress => 0x0000_0fff,
    }
}

/// An id in its place.
pub fn id_bits(half: Direction, id: u16) -> u32 {
    u32::from(id) << id_mask(half).trailing_zeros() & id_mask(half)
}

/// The id that stands in a mark for this half; `None` where there is none.
pub fn id_of(half: Direction, mark: u32) -> Option<u16> {
    let id = (mark & id_mask(half)) >> id_mask(half).trailing_zeros();
    u16::try_from(id).ok().filter(|id| *id != 0)
}

/// The mark of a flow that this generation allows; `ids` are those of both halves, in their places.
pub fn allowed_mark(generation: Generation, ids: u32) -> u32 {
    let both = Direction::BOTH.into_iter().all(|half| id_of(half, ids).is_some());
    generation.mark() | ids & IDS_MASK | if both { TWO_IDS } else { 0 }
}

/// The number of the current policy in the ct marks of judged flows: 1 to 126; 0 is "not judged", 127 "denied".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u8);

impl Generation {
    /// The first.
    pub const FIRST: Self = Self(1);

    /// The generation with this number; `None` for numbers that are none.
    pub const fn new(number: u8) -> Option<Self> {
        if number == 0 || number >= DENIED { None } else { Some(Self(number)) }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The one behind it; 1 follows 126.
    pub const fn next(self) -> Self {
        if self.0 == DENIED - 1 { Self::FIRST } else { Self(self.0 + 1) }
    }

    /// Its place in a ct mark.
    pub fn mark(self) -> u32 {
        u32::from(self.0) << GENERATION_SHIFT
    }

    /// The generation in a ct mark, if there is one.
    pub const fn from_mark(mark: u32) -> Option<Self> {
        Self::new(mark.to_be_bytes()[0] >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_go_round_without_the_two_that_are_none() {
        assert_eq!([0, 127, 128, 255].map(Generation::new), [None; 4]);
        let all: Vec<u8> = std::iter::successors(Some(Generation::FIRST), |last| Some(last.next()))
            .map(Generation::number)
            .take(127)
            .collect();
        assert_eq!(all[..126], (1..=126).collect::<Vec<u8>>());
        assert_eq!(all[126], 1);
    }

    #[test]
    fn a_generation_is_read_back_from_its_mark_whatever_the_other_bits() {
        let generation = Generation::new(0x55).expect("a generation");
        assert_eq!(generation.mark(), 0xaa00_0000);
        assert_eq!(Generation::from_mark(generation.mark() | !GENERATION_MASK), Some(generation));
        assert_eq!((Generation::from_mark(!GENERATION_MASK), Generation::from_mark(DENIED_MARK)), (None, None));
    }

    #[test]
    fn bits_are_all_of_them_and_overlap_nowhere() {
        let parts = [GENERATION_MASK, TWO_IDS, id_mask(Direction::Egress), id_mask(Direction::Ingress)];
        assert_eq!(parts.iter().fold(0, |all, part| all ^ part), u32::MAX);
        assert_eq!(parts.iter().map(|part| part.count_ones()).sum::<u32>(), 32);
        assert_eq!(id_mask(Direction::Egress) | id_mask(Direction::Ingress), IDS_MASK);
    }

    #[test]
    fn ids_come_out_as_they_went_in_and_the_bit_says_two() {
        for id in [1, 2, 0x0abc, ID_MAX, NO_ID] {
            let (egress, ingress) = (id_bits(Direction::Egress, id), id_bits(Direction::Ingress, id));
            assert_eq!(id_of(Direction::Egress, egress), Some(id));
            assert_eq!((id_of(Direction::Ingress, egress), id_of(Direction::Egress, ingress)), (None, None));
            for (ids, bit) in [(egress | ingress, TWO_IDS), (egress, 0), (ingress, 0), (0, 0)] {
                let mark = allowed_mark(Generation::FIRST, ids);
                assert_eq!((mark & TWO_IDS, mark & IDS_MASK), (bit, ids));
                assert_eq!(Generation::from_mark(mark), Some(Generation::FIRST));
            }
        }
    }
}
