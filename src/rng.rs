//! Random numbers that are the same on every machine: SplitMix64 as a counter-based generator.
//!
//! Number `i` of a stream is a mix of `key + i·γ`, so streams are cheap, independent of each other, and can be made
//! wherever they are needed from (seed, index, purpose) without sharing state between threads. Transcendental
//! functions come from `libm`, whose results do not depend on the platform. Law: Steele, Lea and Flood, "Fast
//! Splittable Pseudorandom Number Generators", 2014.

pub(crate) const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Stream {
    key: u64,
    counter: u64,
}

impl Stream {
    /// The stream that belongs to these words: a seed, an index, a purpose. Other words make an unrelated stream.
    pub fn new(words: &[u64]) -> Self {
        let key = words.iter().fold(0, |key: u64, word| mix(key.wrapping_add(GAMMA) ^ mix(word.wrapping_add(GAMMA))));
        Self { key, counter: 0 }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        mix(self.key.wrapping_add(self.counter.wrapping_mul(GAMMA)))
    }

    /// Number `i` of the stream, from 0, wherever the stream stands: what parallel loops draw from.
    pub fn bits_at(&self, i: u64) -> u64 {
        mix(self.key.wrapping_add(i.wrapping_add(1).wrapping_mul(GAMMA)))
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0..n; `n` is positive.
    pub fn below(&mut self, n: usize) -> usize {
        // The high half of a 128-bit product: bias below n / 2⁶⁴.
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * libm::log(1.0 - self.unit())).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.unit())
    }

    /// Permutes a slice uniformly (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// The finaliser of SplitMix64: a bijection whose output bits each depend on every input bit.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_the_published_finaliser() {
        // The first outputs of SplitMix64 with state 0, as in the reference implementation.
        let outputs: Vec<u64> = (1..=3u64).map(|i| mix(i.wrapping_mul(GAMMA))).collect();
        assert_eq!(outputs, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
    }

    #[test]
    fn streams_are_repeatable_and_distinct() {
        let first = |words: &[u64]| Stream::new(words).bits();
        assert_eq!(first(&[1, 2, 3]), first(&[1, 2, 3]));
        let mut stream = Stream::new(&[9]);
        assert!((0..5).all(|i| stream.bits_at(i) == Stream::bits(&mut stream)));
        let others = [first(&[1, 2, 3]), first(&[1, 3, 2]), first(&[2, 1, 3]), first(&[1, 2]), first(&[1, 2, 3, 0])];
        for (i, a) in others.iter().enumerate() {
            assert!(others[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let (mut stream, n) = (Stream::new(&[7]), 20_000);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / n as f64;
        let units: Vec<f64> = (0..n).map(|_| stream.unit()).collect();
        assert!((mean(&units) - 0.5).abs() < 0.01 && units.iter().all(|u| (0.0..1.0).contains(u)));
        let normals: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
        assert!(mean(&normals).abs() < 0.03);
        assert!((mean(&normals.iter().map(|x| x * x).collect::<Vec<_>>()) - 1.0).abs() < 0.05);
        let counts = (0..n).fold([0; 5], |mut counts, _| {
            counts[stream.below(5)] += 1;
            counts
        });
        assert!(counts.iter().all(|c| (3700..4300).contains(c)), "{counts:?}");
    }

    #[test]
    fn shuffle_permutes() {
        let mut items: Vec<usize> = (0..64).collect();
        Stream::new(&[3]).shuffle(&mut items);
        assert!(!items.is_sorted());
        items.sort_unstable();
        assert!(items.iter().copied().eq(0..64));
    }
}
