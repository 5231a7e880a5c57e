//! The arena: an offset for every storage, so that no two that are in use together overlap.
//!
//! Offset assignment greedy by size (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference",
//! 2020): the largest first, each into the smallest gap between those already placed that are in use with it.

use super::{ALIGN, schedule::Lifetime};

/// Something that needs memory for some time.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// When.
    pub life: Lifetime,
    /// How much.
    pub bytes: u64,
}

/// An arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arena {
    /// Of each request, aligned to [`ALIGN`].
    pub offsets: Vec<u64>,
    /// Its size, a multiple of [`ALIGN`].
    pub bytes: u64,
}

struct Placed {
    life: Lifetime,
    start: u64,
    end: u64,
}

/// Places every request. Sizes are far below 2^63: they are sizes of values.
pub fn assign(requests: &[Request]) -> Arena {
    let mut largest_first: Vec<usize> = (0..requests.len()).filter(|i| requests[*i].bytes > 0).collect();
    largest_first.sort_by_key(|i| (std::cmp::Reverse(requests[*i].bytes), requests[*i].life.first, *i));
    let mut placed: Vec<Placed> = Vec::with_capacity(requests.len()); // by start
    let mut arena = Arena { offsets: vec![0; requests.len()], bytes: 0 };
    for i in largest_first {
        let Request { life, bytes } = requests[i];
        let size = bytes.next_multiple_of(ALIGN);
        let (mut free_from, mut best) = (0, None);
        for other in placed.iter().filter(|o| o.life.first <= life.last && life.first <= o.life.last) {
            let gap = other.start.saturating_sub(free_from);
            if gap >= size && best.is_none_or(|(smallest, _)| gap < smallest) {
                best = Some((gap, free_from));
            }
            free_from = free_from.max(other.end);
        }
        let start = best.map_or(free_from, |(_, start)| start);
        let at = placed.partition_point(|o| o.start <= start);
        placed.insert(at, Placed { life, start, end: start + size });
        arena.offsets[i] = start;
        arena.bytes = arena.bytes.max(start + size);
    }
    arena
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(first: usize, last: usize, bytes: u64) -> Request {
        Request { life: Lifetime { first, last }, bytes }
    }

    #[test]
    fn memory_is_used_again() {
        let arena = assign(&[request(0, 1, 256), request(1, 2, 256), request(2, 3, 200), request(0, 3, 1)]);
        assert_eq!(arena, Arena { offsets: vec![0, 256, 0, 512], bytes: 768 });
        assert_eq!(assign(&[request(0, 9, 0)]), Arena { offsets: vec![0], bytes: 0 });
    }

    proptest! {
        #[test]
        fn nothing_that_lives_together_overlaps(
            raw in prop::collection::vec((0usize..40, 0usize..12, 0u64..5000), 0..60)
        ) {
            let requests: Vec<Request> = raw.into_iter().map(|(f, n, b)| request(f, f + n, b)).collect();
            let arena = assign(&requests);
            for (i, a) in requests.iter().enumerate() {
                prop_assert!(arena.offsets[i] + a.bytes <= arena.bytes && arena.offsets[i].is_multiple_of(ALIGN));
                for (j, b) in requests.iter().enumerate().take(i) {
                    let together = a.life.first <= b.life.last && b.life.first <= a.life.last;
                    let apart = arena.offsets[i] + a.bytes <= arena.offsets[j]
                        || arena.offsets[j] + b.bytes <= arena.offsets[i];
                    prop_assert!(!together || apart || a.bytes == 0 || b.bytes == 0);
                }
            }
        }
    }
}
